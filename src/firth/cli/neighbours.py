"""`firth neighbours`: the nearest occurrences of a word in a corpus, as a concordance."""

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from firth.api import LanguageModel
from firth.api.neighbours import Neighbours, check_one_word, marked_word
from firth.api.word_vectors import vocabulary_vectors
from firth.cli.models import language_model
from firth.cli.options import Device, Model, parse
from firth.errors import ConfigError
from firth.inference.neighbours import Occurrence
from firth.inference.word_index import WordIndex
from firth.text.corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class Options:
    """The occurrences in a corpus that are nearest to a word in its context, by the model's
    vectors; below them the words that are nearest without a context.

    The first call reads the corpus, which takes about as long as embedding it. --index keeps the
    vectors for later calls.
    """

    model: Model
    corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
    """A file, folder or quoted glob: .txt, .jsonl, .csv, .tsv, .parquet, also .gz and .zst."""
    texts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT [TEXT ...]")
    ]
    """Texts, each with one word in square brackets: "open a [bank] account"."""
    index: str | None = None
    """Folder of the index: built if it is not there, and kept. Without it, a temporary one."""
    top_k: int = 10
    """Occurrences for each text."""
    layers: tuple[int, ...] | Literal["all"] = (-1,)
    """Layers whose mean is the vector: 0 is the embedding output, -1 the last."""
    same_word: bool = False
    """Look at occurrences of the marked word only; without --index, only these are read."""
    other_words: bool = False
    """Look at other words only."""
    all_in_sentence: bool = False
    """Show every near word of a sentence, not just the nearest."""
    directions: int | Literal["auto", "off"] = "auto"
    """Correction for anisotropy: principal directions removed besides the mean."""
    static: str | None = None
    """Static vectors (a run of word2vec, a .vec file) whose neighbours are shown beside."""
    words: tuple[str, ...] = ()
    """Index these words alone."""
    min_count: int = 1
    """Leave rarer words out of the index."""
    skip_frequent: int = 0
    """Leave so many of the most frequent words out of the index."""
    punctuation: bool = False
    """Index punctuation marks, too."""
    split: bool = False
    """The text is tokenised: a line is a sentence, white space separates words."""
    documents: Literal["auto", "file", "block", "line"] = "auto"
    """What a document is in .txt files."""
    column: str = "text"
    """Column that holds the text in .jsonl, .csv, .tsv and .parquet files."""
    errors: Literal["strict", "replace"] = "strict"
    """What to do about bytes that are not UTF-8."""
    width: int = 100
    """Characters of a line of output."""
    json: bool = False
    """One JSON object a text, with whole sentences and their places in the corpus."""
    device: Device = "auto"


def neighbours(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    options = parse(Options, arguments, "neighbours")
    if options.same_word and options.other_words:
        raise ConfigError("--same-word and --other-words exclude each other; give one of them")
    if not options.texts:
        raise ConfigError('no text was given: firth neighbours RUN TEXTS "open a [bank] account"')
    marked = [_word(text) for text in options.texts]
    model = language_model(options.model, device=options.device)
    if options.top_k < 1:
        raise ConfigError(f"--top-k is {options.top_k}; expected at least 1")
    static = options.static and language_model(options.static, device=options.device)
    if static:
        vocabulary_vectors(static)  # refuses a model of another kind before the text is read
    for text in options.texts if options.same_word else ():
        check_one_word(model, text.split() if options.split else text)
    with tempfile.TemporaryDirectory(prefix="firth-") as scratch:
        index = _index(model, options, marked, Path(scratch) / "index")
        _describe(index)
        among = "same" if options.same_word else "other" if options.other_words else "all"
        for number, text in enumerate(options.texts):
            found = model.neighbours(
                text,
                index,
                top_k=options.top_k,
                among=among,
                directions=options.directions,
                one_a_sentence=not options.all_in_sentence,
                static=static,
            )
            if options.json:
                print(json.dumps(_as_json(text, found), ensure_ascii=False))
            else:
                print(
                    ("\n" if number else "")
                    + concordance(text, found, options.width, asked=bool(static))
                )


def _word(text: str) -> str:
    plain, (begin, end) = marked_word(text)
    assert isinstance(plain, str)
    return plain[begin:end].strip()


def _index(model: LanguageModel, options: Options, marked: list[str], scratch: Path) -> WordIndex:
    corpus = Corpus.from_files(
        options.corpus,
        documents=options.documents,
        text_column=options.column,
        errors=options.errors,
    )
    words = options.words
    if options.index is None and options.same_word and not words:
        words = tuple(sorted(set(marked)))
    one = options.layers[0] if len(options.layers) == 1 else options.layers
    return model.index_words(
        corpus,
        scratch if options.index is None else options.index,
        layers=one,
        split=options.split,
        words=words,
        min_count=options.min_count,
        skip_frequent=options.skip_frequent,
        punctuation=options.punctuation,
    )


def _describe(index: WordIndex) -> None:
    facts = index.manifest
    removed = facts["directions_removed"]
    print(
        f"{index.num_rows:,} words; mean cosine of random pairs {facts['random_cosine']:.3f}, "
        f"with the mean and {removed} directions removed {facts['random_cosine_corrected']:.3f}",
        file=sys.stderr,
    )


def concordance(text: str, found: Neighbours, width: int, *, asked: bool = False) -> str:
    """The text, its nearest occurrences with the words below each other, and the static words.

    Where these were `asked` for and the word has no vector, it is said.
    """
    lines = [text, ""]
    longest = max((len(one.word) for one in found.occurrences), default=0)
    room = max(20, (width - longest - 10) // 2)
    lines += [_line(one, room) for one in found.occurrences]
    if found.static:
        words = "  ".join(f"{word} {cosine:.3f}" for word, cosine in found.static)
        lines += ["", f"without context: {words}"]
    elif asked:
        lines += ["", f"without context: no vector for {found.word!r}"]
    return "\n".join(lines)


def _line(one: Occurrence, room: int) -> str:
    left = re.sub(r"\s+", " ", one.sentence[: one.start])
    right = re.sub(r"\s+", " ", one.sentence[one.end :])
    left = left if len(left) <= room else "…" + left[1 - room :]
    right = right if len(right) <= room else right[: room - 1] + "…"
    return f"{one.cosine:.3f}  {left:>{room}}[{one.word}]{right}"


def _as_json(text: str, found: Neighbours) -> dict[str, Any]:
    return {
        "text": text,
        "word": found.word,
        "occurrences": [vars(one) for one in found.occurrences],
        "static": [{"word": word, "cosine": cosine} for word, cosine in found.static],
    }
