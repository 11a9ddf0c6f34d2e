"""Spans of a text that matter more than others: names, dates, or what the user has marked.

They are found in the text itself, before it is cut into tokens, and stored beside the token files
of a run as a number a token: `OUTSIDE`, `INSIDE` a span, or `OPENS` one.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

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

_WORD = re.compile(r"[^\W_]+(?:[-'’&][^\W_]+)*")
_LINKS = {"of", "de", "la", "du", "van", "von", "der", "den", "di", "da", "del", "al", "bin"}
_TITLES = {"Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Sir", "Lt", "Col", "Gen", "Jr", "Sr"}
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_YEAR = r"(?:1\d{3}|20\d{2})"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)? {_MONTH}(?:,? {_YEAR})?|{_MONTH} \d{{1,2}}(?:,? {_YEAR})?\b"
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
        return lambda text: _without_overlaps([*dates(text), *names(text, usual)])
    path = Path(kind)
    if not path.is_file():
        raise DataError(f"data.spans is {kind!r}; expected names, salient, or an existing file")
    return _marked(path) if path.suffix == ".jsonl" else _phrases(path)


def usual_forms(texts: Iterable[str]) -> frozenset[str]:
    """Words, in lower case, that are capitalised inside sentences more often than not.

    A truecaser (Lita et al. 2003): it tells names from other words at the start of a sentence.
    """
    capital, lower = Counter[str](), Counter[str]()
    for text in islice(texts, _SAMPLE):
        for word in _WORD.finditer(text):
            form = word.group()
            if form[0].isupper():
                if not _opens_sentence(text, word.start()):
                    capital[form.lower()] += 1
            else:
                lower[form] += 1
    return frozenset(form for form, count in capital.items() if count > lower[form])


def names(text: str, usual: frozenset[str]) -> list[Span]:
    """Runs of capitalised words, which links such as "of" may join; "I" alone is none.

    A word that opens a sentence counts if `usual` has it. In languages that capitalise all nouns
    these are spans of nouns.
    """
    words = list(_WORD.finditer(text))
    capital = [_is_name(text, word, usual) for word in words]
    found, i = list[Span](), 0
    while i < len(words):
        if not capital[i]:
            i += 1
            continue
        last = i
        while (joined := _next_of_name(text, words, capital, last)) is not None:
            last = joined
        begin, end = words[i].start(), words[last].end()
        parts = re.split(r"[\W_]+", text[begin:end])
        if any(len(part) > 1 and part[0].isupper() for part in parts):
            found.append((begin, end))
        i = last + 1
    return found


def dates(text: str) -> list[Span]:
    """Days, months of a year, years, decades and centuries, as English and ISO 8601 write them."""
    return [match.span() for match in _DATE.finditer(text)]


def _is_name(text: str, word: re.Match[str], usual: frozenset[str]) -> bool:
    form = word.group()
    if not form[0].isupper():
        return False
    return not _opens_sentence(text, word.start()) or form.lower() in usual


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
    last = _WORD.findall(before)
    return not (last and before.endswith(last[-1] + ".") and _abbreviates(last[-1]))


def _without_overlaps(spans: Iterable[Span]) -> list[Span]:
    """The spans in order; of two that overlap the one that begins first, or is longer."""
    kept = list[Span]()
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept


def _phrases(path: Path) -> Annotator:
    """Finds the phrases of a file wherever they stand as whole words; the longest first."""
    lines = path.read_text(encoding="utf-8").splitlines()
    phrases = [tuple(_WORD.findall(line)) for line in lines]
    by_first = dict[str, list[tuple[str, ...]]]()
    for phrase in sorted(filter(None, phrases), key=len, reverse=True):
        by_first.setdefault(phrase[0], []).append(phrase)
    if not by_first:
        raise DataError(f"{path}: no phrase found, expected one a line")

    def find(text: str) -> list[Span]:
        words = list(_WORD.finditer(text))
        forms = tuple(word.group() for word in words)
        found, i = list[Span](), 0
        while i < len(words):
            fitting = (p for p in by_first.get(forms[i], ()) if forms[i : i + len(p)] == p)
            phrase = next(fitting, None)
            if phrase is not None:
                found.append((words[i].start(), words[i + len(phrase) - 1].end()))
            i += len(phrase or (1,))
        return found

    return find


def _marked(path: Path) -> Annotator:
    """Spans that the user has marked in the texts themselves."""
    by_text = dict[str, list[Span]]()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                text, spans = row["text"], [(int(a), int(b)) for a, b in row["spans"]]
            except (ValueError, KeyError, TypeError) as error:
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
            by_text[text.strip()] = _without_overlaps(moved)
    return lambda text: by_text.get(text, [])


def write_marks(
    texts: Iterable[str], find: Annotator, tokenizer: Tokenizer, shards: Shards, path: Path
) -> None:
    """Marks each token of a run's token files, (num_tokens) uint8, unless that has been done.

    A token that a span touches is in it.

    Raises:
        DataError: if the texts do not give the tokens that are stored.
    """
    if path.is_file() and path.stat().st_size == shards.num_tokens:
        return
    marks = b"".join(_marks(texts, find, tokenizer))
    if len(marks) != shards.num_tokens:
        raise DataError(
            f"{path}: the corpus gives {len(marks):,} tokens and {shards.num_tokens:,} are stored; "
            "delete the folder data of the run and start again"
        )
    write_file(path, lambda temporary: temporary.write_bytes(marks), needed=len(marks))


def _marks(texts: Iterable[str], find: Annotator, tokenizer: Tokenizer) -> Iterator[bytes]:
    backend = literal_backend(tokenizer.to_json())
    for batch in batches(texts):
        encodings = backend.encode_batch(batch, add_special_tokens=False)
        for text, encoding in zip(batch, encodings, strict=True):
            offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            marks = np.full(len(offsets), OUTSIDE, np.uint8)
            for begin, end in find(text):
                within = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < end))
                marks[within] = INSIDE
                marks[within[:1]] = OPENS
            yield marks.tobytes()
