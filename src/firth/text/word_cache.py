"""Encoding documents for pre-training at the speed of a dictionary.

Most words of a text have been seen before. Where a tokenizer encodes each word without regard to
its neighbours, a document is the concatenation of its words' ids, and each distinct word needs the
tokenizer only once. Where that is not known of a tokenizer, documents go to it whole.

This module imports neither torch nor the rest of firth, so that the processes of
`firth.text.encoding` start in a tenth of a second.
"""

import contextlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

OPENS_WORD = np.uint32(1 << 31)
"""The bit of a cached id that marks the first token of a word."""

WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's White_Space as a regular expression's class: what `tokenizers` cuts at. Python's own
``\\s`` also holds U+001C to U+001F."""

# GPT-2's pattern, except that what is not white space stays together, but for a plain word before
# white space or a mark that cannot be part of it: so "word," and "word" share an entry.
BYTE_LEVEL_CHUNKS = re.compile(
    rf" ?[A-Za-z]+(?![^{WHITE_SPACE}.,;:!?\"])"
    rf"| ?[^{WHITE_SPACE}]+"
    rf"|[{WHITE_SPACE}]+(?![^{WHITE_SPACE}])"
    rf"|[{WHITE_SPACE}]+"
)

# BERT's normaliser deletes some control characters that are white space, which joins the words on
# both sides. So words are cut only at white space that it keeps.
UNCERTAIN = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
WORDS = re.compile(r"[^\t\n\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")

SPLITTERS = {"WhitespaceSplit", "BertPreTokenizer"}
"""Pre-tokenizers that cut at white space and drop it."""
WITHIN_WORDS = {"Punctuation", "Digits", "Split"}
"""Pre-tokenizers that, after a splitter, cut each word further by itself."""
CHARACTER_WISE = {"NFC", "NFD", "Lowercase"}
"""Normalisers that neither create, delete nor look across white space, and delete nothing else."""
WORD_WISE = CHARACTER_WISE | {"StripAccents", "BertNormalizer"}
"""Normalisers that do not look across white space, but may delete characters."""

ENTRY_BYTES = 150
"""About what an entry of a dictionary and the header of its value need."""
UNSEEN = b"?"
"""Stands for the ids of a chunk that is not known; ids take a multiple of four bytes."""
GROUP = 128
"""Unseen words encoded as one text, to share the cost of a call."""
LOOKS_UP_NAMES = {"WordLevel", "WordPiece", "Unigram"}
"""Models that find a special token's name in plain text, as a word or a piece like any other."""
NO_TEXT = "\uffff"
"""A code point that is no character, and so in no text."""


class Encoded(NamedTuple):
    """Documents as token ids, end to end, without special tokens."""

    ids: np.ndarray
    """(n) uint32."""
    opens_word: np.ndarray
    """(n) bool: True where a token begins a word of the pre-tokenizer."""
    lengths: np.ndarray
    """Number of tokens of each document, int64."""


def literal_backend(tokenizer_json: str) -> Tokenizer:
    """A tokenizer that takes "[MASK]" for text and adds nothing to it."""
    description = json.loads(tokenizer_json)
    # Without it, offsets are those of the text, untrimmed.
    description["post_processor"] = None
    if description["model"].get("type") in LOOKS_UP_NAMES:
        _rename_special_tokens(description)
    backend = Tokenizer.from_str(json.dumps(description))
    backend.encode_special_tokens = True
    return backend


def _rename_special_tokens(description: dict[str, Any]) -> None:
    """Gives special tokens names that are in no text, in place; their ids stay."""
    model = description["model"]
    special = [token for token in description["added_tokens"] if token["special"]]
    names = {token["content"] for token in special} - {model.get("unk_token")}
    for token in special:
        if token["content"] in names:
            token["content"] += NO_TEXT

    def renamed(name: str) -> str:
        return name + NO_TEXT if name in names else name

    if model["type"] == "Unigram":
        model["vocab"] = [[renamed(piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {renamed(word): index for word, index in model["vocab"].items()}


def cuts_words(description: dict[str, Any]) -> bool:
    """Whether a tokenizer.json cuts texts into words.

    Llama's takes a text for one word, or all of it that has no line break.
    """
    cutter = description.get("pre_tokenizer")
    return cutter is not None and cutter.get("split", True) is not False


def words_at(offsets: np.ndarray, line: str, text: str | Sequence[str]) -> np.ndarray:
    """For each token, the index of the word that holds its first character but for white space.

    White space before the first word belongs to it; in a text without words all are -1.

    Args:
        offsets: (T, 2) begin and end of each token in `line`.
        line: the text as one string.
        text: the words that are joined in it by spaces; or the string, cut at white space.
    """
    if isinstance(text, str):
        starts = np.array([match.start() for match in re.finditer(r"\S+", text)], np.int64)
    else:
        lengths = np.fromiter(map(len, text), np.int64, len(text))
        starts = np.cumsum(lengths + 1) - lengths - 1
    visible = []
    for start, end in offsets.tolist():
        while start < end and line[start].isspace():
            start += 1
        visible.append(start)
    found = np.searchsorted(starts, np.array(visible, np.int64), side="right") - 1
    return np.maximum(found, 0) if len(starts) else found


class WordCache:
    """Encodes documents literally: "[MASK]" in a document is six characters like any others.

    Args:
        tokenizer_json: the tokenizer, as in a tokenizer.json file.
        max_bytes: about the most memory that remembered words take; they are forgotten beyond it.
    """

    def __init__(self, tokenizer_json: str, max_bytes: int = 1 << 27) -> None:
        self._backend = literal_backend(tokenizer_json)
        description = json.loads(tokenizer_json)
        self._chunks = _chunker(description)
        self._cuts_words = cuts_words(description)
        self._known: dict[str, bytes] = {}
        self._max_bytes = max_bytes
        self._bytes = 0

    @property
    def by_words(self) -> bool:
        """Whether this tokenizer is known to encode each word independently of its neighbours."""
        return self._chunks is not None

    def encode(self, documents: Sequence[str]) -> Encoded:
        """Encodes documents."""
        if self._chunks is None:
            encodings = self._backend.encode_batch(documents, add_special_tokens=False)
            pairs = zip(documents, encodings, strict=True)
            found = [self._whole(document, encoding).tobytes() for document, encoding in pairs]
        else:
            found = self._look_up(documents, self._chunks)
        flagged = np.frombuffer(b"".join(found), np.uint32)
        lengths = np.fromiter(map(len, found), np.int64, len(found)) // flagged.itemsize
        return Encoded(flagged & ~OPENS_WORD, flagged >= OPENS_WORD, lengths)

    def _whole(self, document: str, encoding: Any) -> np.ndarray:
        if self._cuts_words:
            return _flagged_ids(encoding.ids, encoding.word_ids)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return _flagged_ids(encoding.ids, words_at(offsets, document, document))

    def _look_up(self, documents: Sequence[str], cut: Callable[[str], list[str]]) -> list[bytes]:
        if self._bytes > self._max_bytes:
            self._known.clear()
            self._bytes = 0
        chunks, ends = [], [0]
        for document in documents:
            chunks += cut(document)
            ends.append(len(chunks))
        found = list(map(self._known.get, chunks, itertools.repeat(UNSEEN)))
        unseen = list(_positions(UNSEEN, found))
        self._learn({chunks[i] for i in unseen})
        for i in unseen:
            found[i] = self._known[chunks[i]]
        return [b"".join(found[start:end]) for start, end in itertools.pairwise(ends)]

    def _learn(self, chunks: Iterable[str]) -> None:
        words, spaces = [], []
        for chunk in chunks:
            (spaces if chunk.isspace() else words).append(chunk)
        # A line feed parts words without changing them, but would merge with other white space.
        groups = [words[i : i + GROUP] for i in range(0, len(words), GROUP)]
        groups += [[space] for space in spaces]
        texts = ["\n".join(group) for group in groups]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        for group, encoding in zip(groups, encodings, strict=True):
            self._remember(group, encoding)

    def _remember(self, group: list[str], encoding: Any) -> None:
        lengths = np.fromiter(map(len, group), np.int64, len(group))
        starts = np.cumsum(lengths + 1) - lengths - 1
        token_starts = np.array([start for start, _ in encoding.offsets], np.int64)
        chunk = np.searchsorted(starts, token_starts, side="right") - 1
        inside = token_starts < (starts + lengths)[chunk]
        data = _flagged_ids(encoding.ids, encoding.word_ids)[inside].tobytes()
        ends = np.cumsum(np.bincount(chunk[inside], minlength=len(group))) * OPENS_WORD.itemsize
        spans = itertools.pairwise([0, *ends.tolist()])
        self._known.update(zip(group, [data[start:end] for start, end in spans], strict=True))
        self._bytes += ENTRY_BYTES * len(group) + len(data) + sum(map(sys.getsizeof, group))


def _positions(item: bytes, items: list[bytes]) -> Iterator[int]:
    position = -1
    with contextlib.suppress(ValueError):
        while True:
            position = items.index(item, position + 1)
            yield position


def _flagged_ids(ids: Sequence[int], words: Sequence[int] | np.ndarray) -> np.ndarray:
    """The ids, marked where the number of the word is another than before."""
    flagged = np.array(ids, np.uint32)
    flagged[np.diff(np.array(words, np.int64), prepend=-1) != 0] |= OPENS_WORD
    return flagged


def _chunker(description: dict[str, Any]) -> Callable[[str], list[str]] | None:
    """The function that cuts a text where this tokenizer surely does, or None if none is known."""
    if any(not token["special"] for token in description["added_tokens"]):
        return None
    normalizers = {part["type"] for part in _parts(description["normalizer"], "normalizers")}
    first, *others = _parts(description["pre_tokenizer"], "pretokenizers") or [{"type": "none"}]
    if first["type"] == "ByteLevel":
        plain = first.get("use_regex", True) and not first["add_prefix_space"] and not others
        return BYTE_LEVEL_CHUNKS.findall if plain and normalizers <= CHARACTER_WISE else None
    if first["type"] in SPLITTERS and normalizers <= WORD_WISE:
        return _words if all(map(_stays_within_words, others)) else None
    return None


def _parts(component: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    return component[name] if component["type"] == "Sequence" else [component]


def _stays_within_words(pre_tokenizer: dict[str, Any]) -> bool:
    if pre_tokenizer["type"] == "Metaspace":
        return pre_tokenizer["prepend_scheme"] == "always"
    return pre_tokenizer["type"] in WITHIN_WORDS


def _words(text: str) -> list[str]:
    if any(character in text for character in UNCERTAIN):
        return WORDS.findall(text)
    return text.split()
