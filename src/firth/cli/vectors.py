"""`firth export`: the word vectors of a static model, as a file for other programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from firth.atomic import need_writable
from firth.cli.models import language_model
from firth.cli.options import parse


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the vectors of a static model's words for gensim, fastText and others."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run of word2vec, glove or fasttext, or a file of word vectors."""
    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """NAME.vec or NAME.txt for text, NAME.bin for word2vec's binary format."""


def export(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    options = parse(Export, arguments, "export")
    need_writable(options.file, inputs=(options.model,))
    model = language_model(options.model, device="cpu")
    count = model.save_word_vectors(options.file)
    print(f"{options.file}\t{count}x{model.model.config.hidden_size}")
