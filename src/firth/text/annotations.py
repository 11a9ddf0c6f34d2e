"""Spans of a text that matter more than others: names, dates, or what the user has marked.

They are found in the text itself, before it is cut into tokens, and stored beside the token files
of a run as a number a token: `OUTSIDE`, `INSIDE` a span, or `OPENS` one.
"""

import json
import re
import sys
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from firth.atomic import write_file
from firth.errors import DataError
from firth.protocols import INSIDE, OPENS, OUTSIDE
from firth.text.encoding import batches
from firth.text.shards import Shards
from firth.text.tokenizers import Tokenizer
from firth.text.word_cache import literal_backend

Span = tuple[int, int]
"""First character and the one after the last."""
Annotator = Callable[[str], list[Span]]
"""Gives the spans of a text, in their order, none overlapping another."""

_LINKS = {"of", "de", "la", "du", "van", "von", "der", "den", "di", "da", "del", "al", "bin"}
_TITLES = {"Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Sir", "Lt", "Col", "Gen", "Jr", "Sr"}
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?\b"
_YEAR = r"(?:1\d{3}|20\d{2})"
_DATE = re.compile(
    rf"\b(?:{_DAY} {_MONTH}(?:,? {_YEAR})?|{_MONTH} {_DAY}(?:,? {_YEAR})?"
    rf"|{_MONTH} {_YEAR}|\d{{4}}-\d{{2}}-\d{{2}}|\d{{1,2}}[./]\d{{1,2}}[./]\d{{4}}"
    rf"|\d{{1,2}}(?:st|nd|rd|th) century|{_YEAR}s?)\b"
)
_SAMPLE = 50_000
"""Documents that tell how a word is usually written."""


def annotator(kind: str, texts: Iterable[str]) -> Annotator:
    """What finds the spans that a run is to mask.

    Args:
        kind: "names", runs of capitalised words; "salient", names and dates; or a file: phrases,
            one a line, or .jsonl with the keys "text" and "spans", pairs of character offsets.
        texts: the corpus, from which it is learned how words are written inside sentences.

    Raises:
        DataError: if the file does not exist or is not of this form.
    """
    if kind == "names":
        usual = usual_forms(texts)
        return lambda text: names(text, usual)
    if kind == "salient":
        usual = usual_forms(texts)
        return lambda text: _without_overlaps(dates(text), names(text, usual))
    path = Path(kind)
    if not path.is_file():
        raise DataError(f"data.spans is {kind!r}; expected names, salient, or an existing file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # texts may hold other line breaks
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); convert it first") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return _marked(path, lines) if path.suffix == ".jsonl" else _phrases(path, lines)


class Forms(NamedTuple):
    """How words are written inside sentences, all given in lower case."""

    capital: frozenset[str]
    """Those that are capitalised more often than not."""
    lower: frozenset[str]
    """Those that also occur without a capital."""


def usual_forms(texts: Iterable[str]) -> Forms:
    """What tells names from other words at the start of a sentence: a truecaser (Lita et al. 2003).

    Of a large corpus it looks at the first 50,000 documents.
    """
    capital, lower = Counter[str](), Counter[str]()
    for text in islice(texts, _SAMPLE):
        for word in _words().finditer(text):
            form = word.group()
            if form[0].isupper():
                if not _opens_sentence(text, word.start()):
                    capital[form.lower()] += 1
            else:
                lower[form] += 1
    more = frozenset(form for form, count in capital.items() if count > lower[form])
    return Forms(more, frozenset(lower))


def names(text: str, usual: Forms) -> list[Span]:
    """Runs of capitalised words, which links such as "of" may join; "I" alone is none.

    A word that opens a sentence counts if it is usually capitalised, or never seen without a
    capital and followed by a name. In languages that capitalise all nouns these are spans of nouns.
    """
    words = list(_words().finditer(text))
    capital = [_is_name(text, word, usual) for word in words]
    for i, word in enumerate(words[:-1]):
        new = word.group()[0].isupper() and word.group().lower() not in usual.lower
        capital[i] |= new and capital[i + 1] and _close(text, words, i + 1)
    found, i = list[Span](), 0
    while i < len(words):
        if not capital[i]:
            i += 1
            continue
        last = i
        while (joined := _next_of_name(text, words, capital, last)) is not None:
            last = joined
        begin, end = words[i].start(), words[last].end()
        parts = _letters().findall(text[begin:end])
        if any(len(part) > 1 and part[0].isupper() for part in parts):
            found.append((begin, end))
        i = last + 1
    return found


def dates(text: str) -> list[Span]:
    """Days, months of a year, years, decades and centuries, as English and ISO 8601 write them."""
    return [match.span() for match in _DATE.finditer(text)]


def _is_name(text: str, word: re.Match[str], usual: Forms) -> bool:
    form = word.group()
    if not form[0].isupper():
        return False
    return not _opens_sentence(text, word.start()) or form.lower() in usual.capital


def _next_of_name(text: str, words: list[re.Match[str]], capital: list[bool], i: int) -> int | None:
    """Which word goes on with the name that word i is part of."""
    step = i + 1
    if step < len(words) and words[step].group() in _LINKS and _close(text, words, step):
        step += 1
    if step < len(words) and capital[step] and _close(text, words, step):
        return step
    return None


def _close(text: str, words: list[re.Match[str]], i: int) -> bool:
    """Whether nothing but a space, or the stop of an initial or title, stands before word i."""
    between = text[words[i - 1].end() : words[i].start()]
    return between == " " or (between == ". " and _abbreviates(words[i - 1].group()))


def _abbreviates(word: str) -> bool:
    return word in _TITLES or (len(word) == 1 and word.isupper())


def _opens_sentence(text: str, begin: int) -> bool:
    before = text[max(0, begin - 40) : begin].rstrip(" \t\"'“”‘’«»()[]*_-–—")
    if not before or before[-1] not in ".!?:…。！？\n":
        return not before
    if before[-1] != ".":
        return True
    last = _words().findall(before)
    return not (last and before.endswith(last[-1] + ".") and _abbreviates(last[-1]))


def _without_overlaps(first: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """The first spans, which do not overlap, and those of the others that overlap none before."""
    fixed = sorted(first)
    begins = [begin for begin, _ in fixed]
    kept = list[Span]()
    for begin, end in sorted(others):
        i = bisect_left(begins, end)
        free = i == 0 or fixed[i - 1][1] <= begin
        if free and (not kept or kept[-1][1] <= begin):
            kept.append((begin, end))
    return sorted([*fixed, *kept])


def _phrases(path: Path, lines: list[str]) -> Annotator:
    """Finds the phrases of a file wherever they stand as whole words; the longest first.

    A hyphen or apostrophe ends a word here: "Anna" stands in "Anna's", "Europe" in "l'Europe".
    Letters with marks may be composed in the text and not in the file, or the other way round.
    """
    letters = _letters()
    by_first = dict[str, list[str]]()
    known = list(filter(letters.search, map(str.strip, lines)))
    forms = {unicodedata.normalize(form, one) for one in known for form in ("NFC", "NFD")}
    for phrase in sorted(forms | set(known), key=lambda one: (-len(one), one)):
        by_first.setdefault(letters.findall(phrase)[0], []).append(phrase)
    if not by_first:
        raise DataError(f"{path}: no phrase found, expected one a line")

    def at(text: str, word: re.Match[str]) -> Span | None:
        for phrase in by_first.get(word.group(), ()):
            begin = word.start() - phrase.index(word.group())
            end = begin + len(phrase)
            edges = text[max(0, begin - 1) : begin] + text[end : end + 1]
            if begin >= 0 and text.startswith(phrase, begin) and not letters.search(edges):
                return begin, end
        return None

    def find(text: str) -> list[Span]:
        found = list[Span]()
        for word in letters.finditer(text):
            if not found or word.start() >= found[-1][1]:
                span = at(text, word)
                found += [] if span is None else [span]
        return found

    return find


@cache
def _combining() -> str:
    every = map(chr, range(sys.maxunicode + 1))
    return "".join(one for one in every if unicodedata.category(one).startswith("M"))


@cache
def _letters() -> re.Pattern[str]:
    """Runs of letters and digits with their marks, which in Hindi, say, are vowels."""
    return re.compile(rf"(?:[^\W_]+|[{_combining()}]+)+")


@cache
def _words() -> re.Pattern[str]:
    """Words with their marks, which Yoruba has in composed text too, and with inner hyphens."""
    letters = rf"[^\W_]+(?:[{_combining()}]+[^\W_]*)*"
    return re.compile(rf"{letters}(?:[-'’&]{letters})*")


def _marked(path: Path, lines: list[str]) -> Annotator:
    """Spans that the user has marked in the texts themselves."""
    by_text = dict[str, list[Span]]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, spans = str(row["text"]), [(int(a), int(b)) for a, b in row["spans"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f'{path}, line {number}: expected {{"text": "...", "spans": [[0, 3], ...]}} '
                f"({type(error).__name__}: {error})"
            ) from error
        for begin, end in spans:
            if not 0 <= begin < end <= len(text):
                raise DataError(
                    f"{path}, line {number}: the span {begin}:{end} is not within the text's "
                    f"{len(text)} characters"
                )
        shift = len(text) - len(text.lstrip())  # documents are stripped
        moved = [(max(0, a - shift), b - shift) for a, b in spans]
        spans_before = by_text.get(text.strip(), [])  # a text may have a row for each span
        by_text[text.strip()] = _without_overlaps(spans_before, moved)
    return lambda text: by_text.get(text, [])


def write_marks(
    texts: Iterable[str],
    find: Annotator,
    tokenizer: Tokenizer,
    shards: Shards,
    path: Path,
    *,
    needed: bool = False,
) -> None:
    """Marks each token of a run's token files, (num_tokens) uint8.

    A token that a span touches is in it. A text without any span is an error where they are
    `needed`, as in training.

    Raises:
        DataError: if the texts do not give the tokens that are stored, or no span is in them.
    """

    def write(temporary: Path) -> None:
        count, found = 0, False
        with temporary.open("wb") as file:
            for marks in _marks(texts, find, tokenizer):
                file.write(marks)
                count += len(marks)
                found = found or OPENS in marks
        if needed and not found:
            raise DataError(
                "none of the spans of data.spans is in the training text; phrases are found as "
                "they are written, and spans of a .jsonl file where its text is a whole document "
                "(--documents line for a sentence a line)"
            )
        if count != shards.num_tokens:
            raise DataError(
                f"{path}: the corpus gives {count:,} tokens and {shards.num_tokens:,} are stored; "
                "delete the folder data of the run and start again"
            )

    write_file(path, write, needed=shards.num_tokens)


def _marks(texts: Iterable[str], find: Annotator, tokenizer: Tokenizer) -> Iterator[bytes]:
    backend = literal_backend(tokenizer.to_json())
    for batch in batches(texts):
        encodings = backend.encode_batch(batch, add_special_tokens=False)
        for text, encoding in zip(batch, encodings, strict=True):
            offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            marks = np.full(len(offsets), OUTSIDE, np.uint8)
            for begin, end in find(text):
                low = int(np.searchsorted(offsets[:, 1], begin, "right"))
                high = int(np.searchsorted(offsets[:, 0], end, "left"))
                marks[low:high] = INSIDE
                marks[low : min(low + 1, high)] = OPENS
            yield marks.tobytes()
