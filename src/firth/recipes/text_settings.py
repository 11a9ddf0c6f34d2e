"""How a corpus becomes a vocabulary, and sequences of its tokens."""

from dataclasses import dataclass
from typing import Literal

from firth.config import check_types
from firth.errors import ConfigError

Packing = Literal["documents", "full", "streams"]


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """The vocabulary to train on the corpus."""

    kind: Literal["wordpiece", "bpe", "unigram", "word", "whitespace"] = "wordpiece"
    """How words are cut into tokens; word and whitespace do not cut them."""
    vocab_size: int = 8192
    """Tokens in the vocabulary, special ones included."""
    lowercase: bool = False
    """Whether the text is set in lower case."""
    strip_accents: bool = False
    """Whether accents are taken off."""
    max_bytes: int = 1_000_000_000
    """Most text to learn from; of more, documents spread evenly over all are taken."""
    min_frequency: int = 2
    """How often a word, or a pair of pieces, must be seen to get an entry."""
    sentinels: int = 0
    """Tokens that stand for what is taken out of a text (T5)."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("vocab_size", "max_bytes"):
            _need(self, name, 1)
        for name in ("min_frequency", "sentinels"):
            _need(self, name, 0)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How the corpus becomes sequences."""

    max_length: int = 128
    """Longest training sequence in tokens, special tokens included."""
    packing: Packing = "documents"
    """A sequence holds text of one document, or ("full") goes on with the next document, behind a
    separator (Liu et al. 2019, section 4.2, full-sentences), or ("streams") the whole text is cut
    into batch_tokens / max_length streams, of which each step takes the next max_length tokens, for
    recurrent models, which go on from the state they are in."""
    vary: bool = False
    """Vary the length that a step takes of streams (Merity et al. 2018, section 4.1)."""
    restart: float = 0.0
    """Share of the steps in which streams begin afresh instead of in the state they are in."""
    spans: str = "none"
    """Spans of the text that an objective masks as a whole: "names" (capitalised words), "salient"
    (names and dates), or a file of phrases or marked texts (`firth.text.annotations.annotator`)."""
    smoothing: float = 0.7
    """Exponent of the shares of text of several languages: 1 leaves them, 0 makes them equal."""
    valid: float = 0.01
    """Share of the documents held out, where no validation files are given."""
    valid_tokens: int = 200_000
    """Tokens of the held-out text that each validation looks at."""

    def __post_init__(self) -> None:
        check_types(self)
        _need(self, "valid_tokens", 1)
        _need(self, "smoothing", 0)


def _need(settings: object, name: str, least: int) -> None:
    if not getattr(settings, name) >= least:
        place = f"{type(settings).__name__}.{name}"
        raise ConfigError(f"{place} is {getattr(settings, name)}, expected at least {least}")
