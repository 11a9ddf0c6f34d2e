"""Word vectors of a language model: those of its vocabulary, to files and from files."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from firth.errors import ConfigError, DataError, UnsupportedError
from firth.interop.word_vectors import (
    SUFFIXES,
    begins_as_vectors,
    is_vector_file,
    read_word_vectors,
)
from firth.interop.word_vectors import write_word_vectors as write
from firth.models import Static, StaticConfig
from firth.protocols import Report
from firth.tasks.word_similarity import read_similarity_sets, similarity_report
from firth.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    from firth.api.language_model import LanguageModel

logger = logging.getLogger(__name__)

_CHUNK = 8192
"""Words embedded at a time."""
_SPECIAL = re.compile(r"\[[A-Z]+\]|<[^<>]+>")
"""Names of special tokens, which some files have among their words."""
_TRIED = 10_000
"""Words of a file that decide how texts are cut."""


def vocabulary_vectors(lm: LanguageModel) -> tuple[list[str], np.ndarray]:
    """The words of a static model's vocabulary and their vectors, special tokens left out.

    Returns:
        n words and (n, D) float32 vectors.

    Raises:
        UnsupportedError: for a model whose vectors depend on the context.
    """
    if not hasattr(lm, "model"):
        raise ConfigError(f"expected a model of word vectors (firth.load), found {lm!r}")
    if not isinstance(lm.model, Static):
        raise UnsupportedError(
            f"{lm.path or 'this model'}: its vectors depend on the context, so a word has no one "
            "vector; firth embed --unit word gives those of the words of texts"
        )
    special = set(lm.tokenizer.vocabulary.special)
    ids = [i for i in range(lm.model.config.vocab_size) if i not in special]
    weight = lm.model.embeddings.tokens.weight.detach().cpu().numpy()
    return [lm.tokenizer.token(i) for i in ids], weight[ids]


def save_word_vectors(lm: LanguageModel, path: str | Path) -> int:
    """Writes the vectors of a static model's vocabulary; returns their number.

    Words with white space in them, which no format can hold, are left out with a warning. A file
    of word vectors that is there is replaced.

    Raises:
        ConfigError: for a name that does not say a format, or that of another file.
        DataError: if there is no word to write.
        UnsupportedError: for a model whose vectors depend on the context.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: expected a name in .vec or .txt (text) or .bin (binary)")
    if Path(path).is_file() and not begins_as_vectors(Path(path)):
        raise ConfigError(
            f"{path} is there already and holds no word vectors; choose another name, or delete it"
        )
    words, vectors = vocabulary_vectors(lm)
    whole = [row for row, word in enumerate(words) if not any(map(str.isspace, word))]
    if not whole:
        raise DataError(f"{path}: there is no word to write")
    if len(whole) < len(words):
        logger.warning(
            "%s: %d words with white space in them are left out", path, len(words) - len(whole)
        )
    write(path, [words[row] for row in whole], vectors[whole])
    return len(whole)


def word_similarity(lm: LanguageModel, path: str | Path, *, layer: int = -1) -> Report:
    """Spearman's correlation of a model's cosines with judgements; see `similarity_report`.

    Each word is embedded alone, as a text of one word. A word that a static model does not know
    does not count.

    Args:
        lm: the model.
        path: a file of lines of two words and a score, or a folder of such files.
        layer: whose vectors are compared.
    """

    def embed(words: list[str]) -> np.ndarray:
        found = [
            np.stack([_only(one.vectors) for one in some])
            for begin in range(0, len(words), _CHUNK)
            if (some := _alone(lm, words[begin : begin + _CHUNK], layer))
        ]
        return np.concatenate(found)

    return similarity_report(read_similarity_sets(path), embed)


def _alone(lm: LanguageModel, words: Sequence[str], layer: int) -> list[Any]:
    return lm.embed([[word] for word in words], unit="word", layers=layer)


def _only(vectors: np.ndarray) -> np.ndarray:
    """The vector of a text of one word."""
    return vectors[0]


def load_word_vectors(path: Path) -> tuple[Static, Tokenizer]:
    """A file of word vectors as a network and its tokenizer.

    Texts are cut at white space and punctuation, and a list's words are never cut. Where this
    would tear most words of a vocabulary (as Chinese ones), texts are cut at white space alone.
    A vocabulary without capitals is one of lower case. Words are looked up in Unicode's composed
    form (NFC), so of several that differ in nothing else the first counts. Special tokens have no
    vectors: those in the file, as of BERT's vocabulary, are left out with a warning.

    Raises:
        ConfigError: for a name that is none of word vectors.
        DataError: if the file cannot be read.
    """
    if not is_vector_file(path):
        raise ConfigError(
            f"{path}: expected a directory, or a file of word vectors ({', '.join(SUFFIXES)})"
        )
    words, vectors = read_word_vectors(path)
    tokenizer = tokenizer_of(words)
    rows = _rows(words, tokenizer, path)
    vocabulary = tokenizer.vocabulary
    size = vectors.shape[1]
    config = StaticConfig(vocab_size=vocabulary.size, hidden_size=size, outputs=False)
    model = Static(config)
    weight = np.zeros((vocabulary.size, size), np.float32)
    known = json.loads(tokenizer.to_json())["model"]["vocab"]
    weight[[known[word] for word in rows]] = vectors[list(rows.values())]
    with torch.no_grad():
        model.embeddings.tokens.weight.copy_(torch.from_numpy(weight))
    return model.eval(), tokenizer


def tokenizer_of(words: Sequence[str]) -> Tokenizer:
    """A tokenizer that knows these words, in this order behind the special tokens."""
    composed = list(dict.fromkeys(unicodedata.normalize("NFC", word) for word in words))
    lowercase = all(word == word.lower() for word in composed if not _SPECIAL.fullmatch(word))
    made = _with_vocabulary(composed, "word", lowercase)
    tried = composed[:_TRIED]
    torn = sum(len(one.ids) > 1 for one in made.encode_batch(tried, special_tokens=False))
    return _with_vocabulary(composed, "whitespace", lowercase) if 2 * torn > len(tried) else made


def _rows(words: Sequence[str], tokenizer: Tokenizer, path: Path) -> dict[str, int]:
    """The row of each word's vector by its composed form."""
    special = set(map(tokenizer.token, tokenizer.vocabulary.special))
    rows: dict[str, int] = {}
    for row, word in enumerate(words):
        if word not in special:
            rows.setdefault(unicodedata.normalize("NFC", word), row)
    if special & set(words):
        logger.warning("%s: vectors of special tokens are left out", path)
    return rows


def _with_vocabulary(words: Sequence[str], kind: str, lowercase: bool) -> Tokenizer:
    plain = Tokenizer.train(["a"], kind=kind, vocab_size=6, lowercase=lowercase, min_frequency=1)
    description = json.loads(plain.to_json())
    special = {token["content"]: token["id"] for token in description["added_tokens"]}
    others = [word for word in words if word not in special]
    ids = range(len(special), len(special) + len(others))
    description["model"]["vocab"] = special | dict(zip(others, ids, strict=True))
    return Tokenizer(json.dumps(description, ensure_ascii=False))
