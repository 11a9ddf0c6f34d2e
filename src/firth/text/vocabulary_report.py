"""What a vocabulary makes of a text: how finely it cuts, what it does not know, what it loses."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer as Backend

from firth.errors import DataError
from firth.protocols import ABSENT
from firth.text.encoding import batches
from firth.text.tokenizer_training import sample_documents
from firth.text.tokenizers import Tokenizer
from firth.text.word_cache import literal_backend

logger = logging.getLogger(__name__)

MOST_UNKNOWN = 0.01
"""Share of the characters under unknown tokens above which a vocabulary of pieces is doubtful."""
_ENOUGH = 20
"""Words for each entry of a vocabulary from which it shows what is never used."""
SHOWN = 12
"""Lost characters listed in the rows."""


@dataclass(frozen=True, kw_only=True)
class VocabularyReport:
    """Counts over a sample of text, and the shares that follow from them."""

    num_characters: int
    """Characters that are not white space."""
    num_words: int
    """Stretches between white space."""
    num_tokens: int
    num_unknown: int
    """Tokens that are the unknown token."""
    num_unknown_characters: int
    """Characters that stand under one. A whole clause may: tokens alone do not show how much."""
    num_units: int
    """Words as the pre-tokenizer sees them, often with punctuation as words of its own."""
    num_cut: int
    """Such words that are cut into several tokens."""
    num_used: int
    """Entries that occur in the sample."""
    num_entries: int
    """Entries of the vocabulary, special tokens aside."""
    lost: dict[str, int]
    """Characters that normalisation drops or changes, with their counts, most frequent first.
    Composing a letter and its accents (NFC) does not count, nor does white space."""

    @property
    def tokens_per_word(self) -> float:
        """Also called fertility: 1 if no word is cut."""
        return self.num_tokens / self.num_words

    @property
    def unknown_share(self) -> float:
        """Share of tokens that are unknown."""
        return self.num_unknown / max(self.num_tokens, 1)

    @property
    def unknown_character_share(self) -> float:
        """Share of the characters that stand under unknown tokens."""
        return self.num_unknown_characters / self.num_characters

    @property
    def cut_share(self) -> float:
        """Share of the pre-tokenizer's words that are cut into several tokens."""
        return self.num_cut / max(self.num_units, 1)

    @property
    def lost_share(self) -> float:
        """Share of characters that normalisation drops or changes."""
        return sum(self.lost.values()) / self.num_characters

    @property
    def unused_share(self) -> float:
        """Share of the entries that never occur."""
        return 1 - self.num_used / max(self.num_entries, 1)

    def rows(self) -> list[tuple[str, str]]:
        """Names and values to print."""
        shown = ", ".join(
            f"{_name(character)} {count:,}" for character, count in list(self.lost.items())[:SHOWN]
        )
        unused = f"{self.unused_share:.1%} of {self.num_entries:,}"
        if self.num_units < _ENOUGH * self.num_entries:
            unused += f" (of {self.num_units:,} words and marks, too few to tell)"
        return [
            ("words in the sample", f"{self.num_words:,}"),
            ("tokens per word", f"{self.tokens_per_word:.2f}"),
            ("words cut into pieces", f"{self.cut_share:.1%}"),
            ("unknown tokens", f"{self.unknown_share:.3%}"),
            ("characters in unknown tokens", f"{self.unknown_character_share:.3%}"),
            ("entries never used", unused),
            ("characters lost by normalisation", f"{self.lost_share:.3%}"),
            ("most often lost", shown or "none"),
        ]


def vocabulary_report(
    tokenizer: Tokenizer, documents: Iterable[str], *, max_bytes: int = 10_000_000
) -> VocabularyReport:
    """Encodes a sample of documents and counts.

    Logs a warning if a vocabulary of pieces, which should spell any word, does not know more than
    one character in a hundred.

    Args:
        tokenizer: whose vocabulary it is.
        documents: the text.
        max_bytes: most text to look at; of more, documents spread evenly over all are taken.

    Raises:
        DataError: if there are no words in the documents.
    """
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    counts = np.zeros(tokenizer.vocabulary.size, np.int64)
    unknown = tokenizer.vocabulary.unknown
    backend = literal_backend(tokenizer.to_json())
    num_words = num_units = num_cut = num_hidden = 0
    for batch in batches(sample_documents(documents, max_bytes)):
        encoded = tokenizer.encode_documents(batch)
        ids, opens_word = (np.concatenate(parts) for parts in zip(*encoded, strict=True))
        before.update(_visible("\n".join(batch)))
        after.update(_visible("\n".join(map(tokenizer.normalize, batch))))
        counts += np.bincount(ids, minlength=len(counts))
        if unknown != ABSENT and unknown in ids:
            texts = (text for text, (own, _) in zip(batch, encoded, strict=True) if unknown in own)
            num_hidden += sum(_num_under(backend, text, unknown) for text in texts)
        unit_lengths = np.diff(np.flatnonzero(opens_word), append=len(ids))
        num_words += sum(len(document.split()) for document in batch)
        num_units += len(unit_lengths)
        num_cut += int((unit_lengths > 1).sum())
    if not num_words:
        raise DataError("there are no words to report on; check the corpus")
    entries = np.delete(counts, tokenizer.vocabulary.special)
    report = VocabularyReport(
        num_characters=before.total(),
        num_words=num_words,
        num_tokens=int(counts.sum()),
        num_unknown=0 if unknown == ABSENT else int(counts[unknown]),
        num_unknown_characters=num_hidden,
        num_units=num_units,
        num_cut=num_cut,
        num_used=int((entries > 0).sum()),
        num_entries=len(entries),
        lost=dict((before - after).most_common()),
    )
    _warn_of_unknown(report, tokenizer)
    return report


def _warn_of_unknown(report: VocabularyReport, tokenizer: Tokenizer) -> None:
    if report.unknown_character_share > MOST_UNKNOWN and not tokenizer.whole_words:
        logger.warning(
            "%.1f%% of the characters are in words that the vocabulary does not know, and are lost "
            "to the model; use a tokenizer of the kind bpe or unigram, a larger vocabulary, or "
            "text that is more like what it was trained on",
            100 * report.unknown_character_share,
        )


def _num_under(backend: Backend, document: str, unknown: int) -> int:
    """How many visible characters of a document stand under unknown tokens."""
    encoding = backend.encode(document, add_special_tokens=False)
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return sum(len(_visible(document[a:b])) for index, (a, b) in spans if index == unknown)


def _visible(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).split())


def _name(character: str) -> str:
    """The character, and its number where it cannot be seen by itself."""
    visible = character.isprintable() and not unicodedata.combining(character)
    return character if visible else f"U+{ord(character):04X}"
