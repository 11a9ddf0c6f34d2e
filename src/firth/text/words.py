"""Words as they are, one token each: those of a vocabulary, and the unseen ones that texts bring.

Models that spell words (ELMo's characters, fastText's n-grams) have a vector for every word. Their
tokenizers give an unseen word the next free id, and the model looks its spelling up here.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer as Backend

from firth.errors import ConfigError, DataError
from firth.protocols import Encoding, Text, Vocabulary
from firth.text.truncation import check_length, cut_pair

T = TypeVar("T")


def not_unicode(error: Exception) -> DataError:
    """What to say of a text that the tokenizers library refuses."""
    return DataError(
        f"a text cannot be encoded ({error}); expected strings without halves of surrogate "
        "pairs (U+D800 to U+DFFF), which are no characters"
    )


def encoded(encode: Callable[..., T], texts: Any, special_tokens: bool) -> T:
    """What a method of the tokenizers library makes of texts.

    Raises:
        DataError: if they hold half a character.
    """
    try:
        return encode(texts, add_special_tokens=special_tokens)
    except TypeError as error:
        raise not_unicode(error) from error


def check_texts(texts: object, *, once: bool = False) -> None:
    """Refuses what is no list of texts, though Python would go through it.

    Args:
        texts: what was given.
        once: whether what can be gone through only once will do, as a generator.

    Raises:
        ConfigError: for a single text, a set, a dictionary, or what is no sequence.
    """
    if isinstance(texts, str | bytes | PurePath):
        shown = str(texts)[:40]
        raise ConfigError(f"expected a list of texts, found one string; write [{shown!r}]")
    kind = type(texts).__name__
    if isinstance(texts, Set):
        raise ConfigError(
            f"expected a list of texts, found a {kind}, whose order changes from run to run; give "
            "sorted(texts)"
        )
    if isinstance(texts, Mapping):
        raise ConfigError(f"expected a list of texts, found a {kind}; give list(texts.values())")
    if not isinstance(texts, Iterable) or not (once or hasattr(texts, "__len__")):
        raise ConfigError(f"expected a list of texts, found a {kind}: {str(texts)[:40]!r}")


def joined(text: Text) -> str:
    """A text as one string: its words with spaces between them.

    Raises:
        DataError: if it is neither a string nor a list of strings.
    """
    if isinstance(text, str):
        return text
    try:
        return " ".join(text)
    except TypeError as error:
        raise DataError(
            f"a text is {str(text)[:60]!r} ({type(text).__name__}), expected a string or a list of "
            "words, which are strings; correct it or leave it out"
        ) from error


def folded(word: str) -> str:
    """A word by which its spellings are the same one: case folded, letters composed (NFC)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", word).casefold())


def whole_characters(text: str, offsets: np.ndarray) -> np.ndarray:
    """Offsets that hold their last letter with all its marks.

    Where a normalizer has put "e" and U+0301 together, the library gives the place of the "e"
    alone, and of a Korean syllable in jamo that of the first.

    Args:
        text: as it was given.
        offsets: (T, 2) begin and end of each token, by the library.
    """
    if unicodedata.is_normalized("NFC", text):
        return offsets
    starts = sorted({begin for begin, end in offsets.tolist() if end > begin})
    moved = offsets.copy()
    for i, (begin, end) in enumerate(offsets.tolist()):
        at = bisect_left(starts, end)
        limit = starts[at] if at < len(starts) else len(text)
        while begin < end < limit and _continues(text[end]):
            end += 1
        moved[i, 1] = end
    return moved


def _continues(character: str) -> bool:
    """Whether a character is a mark, or the vowel or final consonant of a Korean syllable."""
    jamo = "\u1160" <= character <= "\u11ff" or "\ud7b0" <= character <= "\ud7fb"
    return jamo or unicodedata.category(character).startswith("M")


class Words:
    """The words behind token ids. It only grows, so ids stay valid; copies are the same object.

    Args:
        vocabulary: the words of ids 0, 1, ...
        first: the id that opens a sequence; what stands there is no word.
        last: the id that closes one.
    """

    def __init__(self, vocabulary: Sequence[str], *, first: int, last: int) -> None:
        self.first, self.last = first, last
        self._words = list(vocabulary)
        self._ids = {word: i for i, word in enumerate(self._words)}

    def __len__(self) -> int:
        return len(self._words)

    def __copy__(self) -> "Words":
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> "Words":
        return self  # the copy of a network reads what its tokenizer finds

    def word(self, index: int) -> str:
        """The word of an id."""
        return self._words[index]

    def id(self, word: str) -> int:
        """The id of a word, a new one if it was never seen."""
        known = self._ids.get(word)
        if known is None:
            known = self._ids[word] = len(self._words)
            self._words.append(word)
        return known


class WordReader:
    """Encodes text for a vocabulary of whole words: the user's own words are never cut.

    Args:
        backend: the tokenizer, of the kind that knows whole words alone.
        vocabulary: its special tokens.
    """

    def __init__(self, backend: Backend, vocabulary: Vocabulary) -> None:
        self._backend, self._vocabulary = backend, vocabulary
        self._normalizer = backend.normalizer
        self._open: Words | None = None

    def open(self) -> Words:
        """From now on unseen words have ids of their own, beyond the vocabulary."""
        if self._open is None:
            names = self._backend.get_vocab(with_added_tokens=True)
            known = [""] * self._vocabulary.size
            for name, index in names.items():
                known[index] = name
            ends = self._vocabulary
            self._open = Words(known, first=ends.first, last=ends.last)
        return self._open

    def token(self, index: int) -> str | None:
        """The word of an id, where it is an unseen one's."""
        opened = self._open is not None and self._vocabulary.size <= index < len(self._open)
        return self._open.word(index) if opened and self._open else None

    def encode(self, text: Text, *, special_tokens: bool = True) -> Encoding:
        """The encoding of a text; a word of which nothing is left, such as "", has no token."""
        if isinstance(text, str):
            found: Any = encoded(self._backend.encode, text, False)
            offsets = np.array(found.offsets, np.int64).reshape(-1, 2)
            offsets = whole_characters(text, offsets)
            surface = [text[a:b] for a, b in offsets.tolist()]
            ids = self._ids(surface, found.ids)
            words = np.array([-1 if w is None else w for w in found.word_ids], np.int64)
            encoding = self._encoding(text, ids, offsets, words)
        else:
            encoding = self._encode_words(text, joined(text))
        return self._enclosed(encoding) if special_tokens else encoding

    def encode_ids(
        self, texts: Sequence[Text], *, special_tokens: bool, max_length: int | None
    ) -> list[np.ndarray]:
        """The ids alone, cut at their end to `max_length` in all."""
        check_length(max_length, 2 if special_tokens else 0)
        found = [self.encode(text, special_tokens=False).ids for text in texts]
        ends = self._vocabulary.first, self._vocabulary.last
        if special_tokens:
            room = None if max_length is None else max_length - 2
            return [np.concatenate([ends[:1], ids[:room], ends[1:]]) for ids in found]
        return [ids[:max_length] for ids in found]

    def encode_pair(
        self, first: Text, second: Text, max_length: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """``[CLS] A [SEP] B [SEP]`` with segments 0 and 1, the longer text cut first."""
        check_length(max_length, 3)
        a, b = (self.encode(text, special_tokens=False).ids for text in (first, second))
        a, b = cut_pair(a, b, None if max_length is None else max_length - 3)
        opening, closing = self._vocabulary.first, self._vocabulary.last
        ids = np.concatenate([[opening], a, [closing], b, [closing]]).astype(np.int64)
        return ids, np.repeat(np.array([0, 1], np.int64), [len(a) + 2, len(b) + 1])

    def _encode_words(self, words: Sequence[str], line: str) -> Encoding:
        lengths = np.array([len(word) for word in words], np.int64)
        ends = np.cumsum(lengths + 1) - 1
        offsets = np.stack([ends - lengths, ends], axis=1).reshape(-1, 2)
        normal = list(map(self._normal, words))
        kept = np.flatnonzero([bool(word.strip()) for word in normal])
        unknown = self._vocabulary.unknown
        surface = [words[i] for i in kept.tolist()]
        known = (self._known(normal[i]) for i in kept.tolist())
        ids = self._ids(surface, [unknown if index is None else index for index in known])
        return self._encoding(line, ids, offsets[kept], kept)

    def _known(self, word: str) -> int | None:
        try:
            return self._backend.token_to_id(word)
        except (TypeError, UnicodeEncodeError) as error:
            raise not_unicode(error) from error

    def _ids(self, surface: Sequence[str], ids: Sequence[int]) -> np.ndarray:
        """The ids, with those of unseen words in place of the unknown one."""
        if self._open is None:
            return np.array(ids, np.int64)
        identify: Callable[[str], int] = self._open.id
        unknown = self._vocabulary.unknown
        pairs = zip(surface, ids, strict=True)
        return np.array(
            [identify(self._normal(word)) if i == unknown else i for word, i in pairs], np.int64
        )

    def _normal(self, word: str) -> str:
        """The word as the vocabulary has it: without the spaces put around Chinese characters."""
        if not self._normalizer:
            return word
        try:
            parts = [self._normalizer.normalize_str(part) for part in word.split()]
        except UnicodeEncodeError as error:
            raise not_unicode(error) from error
        return " ".join("".join(part.split()) for part in parts)

    def _encoding(
        self, text: str, ids: np.ndarray, offsets: np.ndarray, words: np.ndarray
    ) -> Encoding:
        return Encoding(
            text=text, ids=ids, tokens=list(map(self._name, ids)), offsets=offsets, words=words
        )

    def _name(self, index: int) -> str:
        index = int(index)
        return self.token(index) or str(self._backend.id_to_token(index))

    def _enclosed(self, encoding: Encoding) -> Encoding:
        nowhere, absent = np.zeros((1, 2), np.int64), np.array([-1], np.int64)
        first, last = self._vocabulary.first, self._vocabulary.last
        return Encoding(
            text=encoding.text,
            ids=np.concatenate([[first], encoding.ids, [last]]),
            tokens=[self._name(first), *encoding.tokens, self._name(last)],
            offsets=np.concatenate([nowhere, encoding.offsets, nowhere]),
            words=np.concatenate([absent, encoding.words, absent]),
        )
