"""Building an index of words: a stream over the corpus, in bounded memory, which can be resumed.

The files grow in a folder with a temporary name, which one process at a time writes to. Every so
often their sizes are noted, so a build that was killed goes on from there; once all is written, the
folder gets its name.
"""

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firth.atomic import resource_errors, sync, temporary_path, write_text
from firth.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from firth.inference.index_facts import write_facts
from firth.inference.word_index import (
    FACT_FILES,
    FORMAT,
    MANIFEST,
    ROW_FILES,
    WordIndex,
    check_same,
    read_manifest,
)
from firth.locks import only_process
from firth.text.sentences import sentence_spans
from firth.text.words import folded

log = logging.getLogger(__name__)

PROGRESS = "progress.json"
CHUNK_CHARACTERS = 1 << 16
"""Text that is embedded at a time."""
NOTE_EVERY = 32
"""Chunks after which progress is noted."""
_WHITE_SPACE = re.compile(r"\s")


class Sentence(NamedTuple):
    """A sentence of the corpus."""

    text: str
    """White space within it made spaces."""
    document: int
    offset: int
    """Where it begins in the document, in characters."""


class Words(NamedTuple):
    """The words of a sentence with their vectors."""

    units: Sequence[str]
    offsets: np.ndarray
    """(n, 2)"""
    vectors: np.ndarray
    """(n, D) float32."""


Embed = Callable[[Sequence[str]], Iterable[Words]]
Cut = Callable[[Sequence[str]], Iterable[Sequence[str]]]


@dataclass(frozen=True, kw_only=True)
class WordFilter:
    """Which words are indexed; case does not count."""

    words: tuple[str, ...] = ()
    """Only these; () for all. Sentences without one of them are not read by the model."""
    min_count: int = 1
    """Least occurrences in the corpus."""
    skip_frequent: int = 0
    """Leave out so many of the most frequent words (stop words)."""
    punctuation: bool = False
    """Index also words that have no letter or digit."""

    def __post_init__(self) -> None:
        if isinstance(self.words, str):
            raise ConfigError(f"words is {self.words!r}; expected a list of words")
        for name, least in {"min_count": 1, "skip_frequent": 0}.items():
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}; expected at least {least}")
            if self.words and value != least:
                raise ConfigError(
                    f"{name} is {value}: beside words, {name} has no effect, since the words are "
                    "given; leave one of the two out"
                )

    def select(self, sentences: Iterable[Sentence], cut: Cut) -> "Selection":
        """The words by name, counted in the sentences where need be."""
        if self.words:
            return Selection(frozenset(map(folded, self.words)), True, given=True)
        if self.min_count <= 1 and not self.skip_frequent:
            return Selection(None, self.punctuation)
        counts: Counter[str] = Counter()
        every = Selection(None, self.punctuation)
        for chunk in _chunks(sentences, CHUNK_CHARACTERS):
            for units in cut([one.text for one in chunk]):
                counts.update(filter(every.keeps, map(folded, units)))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))[self.skip_frequent :]
        return Selection(frozenset(w for w in ranked if counts[w] >= self.min_count), True)


@dataclass(frozen=True)
class Selection:
    """The words that are indexed, case folded."""

    words: frozenset[str] | None
    """None for all."""
    punctuation: bool
    given: bool = False
    """Whether these are a few words that the user named."""

    def keeps(self, word: str) -> bool:
        """Whether a word is one of them."""
        if self.words is not None:
            return word in self.words
        return bool(word) and (self.punctuation or any(map(str.isalnum, word)))

    def may_hold(self, sentence: Sentence) -> bool:
        """False where a look at the text shows that none of them is in it."""
        if not self.given or self.words is None:
            return True
        text = folded(sentence.text)
        return any(word in text for word in self.words)


def read_sentences(documents: Iterable[str], *, lines: bool) -> Iterator[Sentence]:
    """The sentences of documents, or their `lines` as they are."""
    for number, document in enumerate(documents):
        spans = (
            [match.span() for match in re.finditer(r"\S.*", document)]
            if lines
            else sentence_spans(document)
        )
        for begin, end in spans:
            yield Sentence(_WHITE_SPACE.sub(" ", document[begin:end]), number, begin)


def build_index(
    directory: str | Path,
    documents: Iterable[str],
    embed: Embed,
    cut: Cut,
    *,
    dimensions: int,
    identity: dict[str, Any],
    word_filter: WordFilter,
    lines: bool = False,
    characters: int = CHUNK_CHARACTERS,
) -> WordIndex:
    """Builds an index, goes on with one that was begun, or opens the one that is there.

    Args:
        directory: the folder of the index.
        documents: the corpus; iterated once, or twice where words are counted first.
        embed: the words of some sentences with their vectors.
        cut: the words alone.
        dimensions: D.
        identity: hashes and settings that the rows depend on; an index is refused if its own
            differ.
        word_filter: which words are kept.
        lines: take lines for sentences.
        characters: text that is embedded at a time.

    Raises:
        CheckpointError: if another program wrote to the files.
        ConfigError: if something else is there, or another process is building the index.
        DataError: if another index is there, or no word was found.
        ResourceError: if the disk is full.
        UnsupportedError: if a vector is too large for float16.
    """
    path = Path(directory)
    if read_manifest(path) is None:
        _refuse_other_content(path)
        temporary = temporary_path(path)
        with resource_errors(temporary), only_process(temporary) as held:
            if not held:
                raise ConfigError(
                    f"another process is building the index {path}; wait for it and call again, "
                    "stop it, or name another folder"
                )
            if read_manifest(path) is None:  # else one that had it until now has finished it
                selection = word_filter.select(read_sentences(documents, lines=lines), cut)
                sentences = read_sentences(documents, lines=lines)
                with _Writer(temporary, identity) as writer:
                    writer.add_all(sentences, embed, selection, characters)
                _finish(writer, path, dimensions, given_words=selection.given)
    index = WordIndex.open(path)
    check_same(path, index.manifest, identity)
    return index


def _refuse_other_content(path: Path) -> None:
    """The finished index takes the place of an empty folder at most, not of the current one."""
    empty = path.is_dir() and not any(path.iterdir()) and not path.samefile(".")
    if path.exists() and not empty:
        raise ConfigError(
            f"{path} is there already and is no index of words; name a new folder for the index"
        )


def _chunks(sentences: Iterable[Sentence], characters: int) -> Iterator[list[Sentence]]:
    chunk, size = [], 0
    for sentence in sentences:
        chunk.append(sentence)
        size += len(sentence.text)
        if size >= characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _finish(writer: "_Writer", path: Path, dimensions: int, *, given_words: bool) -> None:
    """Computes what comes from all rows, writes the manifest, and gives the folder its name."""
    temporary = writer.directory
    if not writer.rows:
        shutil.rmtree(temporary)
        words = writer.identity["filter"]["words"]
        which = f": {', '.join(words[:10])}" if words else ""
        raise DataError(
            f"none of the words to index occurs in the corpus{which}; check the words, their least "
            "count, and that it is the right corpus"
        )
    writer.check_sizes(dimensions)
    facts = write_facts(temporary, dimensions, given_words=given_words)
    made = {**writer.identity, "rows": writer.rows, "dimensions": dimensions, **facts}
    sizes = {name: (temporary / name).stat().st_size for name in (*ROW_FILES, *FACT_FILES)}
    text = json.dumps({"format": FORMAT, **made, "sizes": sizes}, indent=1, ensure_ascii=False)
    for name in sizes:
        sync(temporary / name)
    write_text(temporary / MANIFEST, text + "\n")
    (temporary / PROGRESS).unlink()  # last: without it a build begins anew
    os.replace(temporary, path)
    sync(path.parent)


class _Writer:
    """The growing files of an index."""

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self.directory, self.identity = directory, identity
        self.read = self.rows = self.sentences = self.text_bytes = self._since = 0
        self.types: dict[str, int] = {}
        self._resume()
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context((directory / name).open("ab")) for name in ROW_FILES
        }

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _resume(self) -> None:
        """Takes up what was noted last, or clears the folder."""
        try:
            progress = json.loads((self.directory / PROGRESS).read_text(encoding="utf-8"))
            sizes = progress["sizes"]
            whole = all((self.directory / n).stat().st_size >= sizes[n] for n in ROW_FILES)
            if progress["identity"] != json.loads(json.dumps(self.identity)) or not whole:
                raise ValueError("of something else")
        except (OSError, ValueError, KeyError):
            for file in self.directory.iterdir():  # the folder itself is held
                file.unlink()
            return
        for name in ROW_FILES:
            os.truncate(self.directory / name, sizes[name])
        self.read, self.text_bytes = progress["read"], sizes["text.utf8"]
        self.rows, self.sentences = sizes["types.u32"] // 4, sizes["sentences.u64"] // 32
        words = (self.directory / "words.txt").read_text(encoding="utf-8").split("\n")[:-1]
        self.types = {word: i for i, word in enumerate(words)}

    def note(self) -> None:
        """Notes how far the files are whole."""
        for name, file in self._files.items():
            file.flush()
            sync(self.directory / name)
        sizes = {name: file.tell() for name, file in self._files.items()}
        progress = {"identity": self.identity, "read": self.read, "sizes": sizes}
        write_text(self.directory / PROGRESS, json.dumps(progress))
        log.info("%s words of %s sentences", f"{self.rows:,}", f"{self.read:,}")
        self._since = 0

    def add_all(
        self, sentences: Iterable[Sentence], embed: Embed, selection: Selection, characters: int
    ) -> None:
        """Adds the sentences that are not in yet, so many characters at a time."""
        if self.read:
            log.info("going on after %s sentences", f"{self.read:,}")
        for chunk in _chunks(islice(sentences, self.read, None), characters):
            self.add(chunk, embed, selection)
        self.note()

    def check_sizes(self, dimensions: int) -> None:
        """Compares the files with what was written to them.

        Raises:
            CheckpointError: if one is longer or shorter, because another program wrote to it.
        """
        expected = {
            "vectors.f16": 2 * dimensions * self.rows,
            "places.u32": 16 * self.rows,
            "types.u32": 4 * self.rows,
            "sentences.u64": 32 * self.sentences,
            "text.utf8": self.text_bytes,
        }
        for name, size in expected.items():
            file = self.directory / name
            if (found := file.stat().st_size) != size:
                raise CheckpointError(
                    f"{file}: found {found:,} bytes, expected {size:,} for {self.rows:,} words of "
                    f"{self.sentences:,} sentences; something else wrote to it: delete "
                    f"{self.directory} and build the index again"
                )

    def add(self, chunk: list[Sentence], embed: Embed, selection: Selection) -> None:
        """Embeds sentences and appends their words."""
        self.read += len(chunk)
        chunk = list(filter(selection.may_hold, chunk))
        for sentence, words in zip(chunk, embed([one.text for one in chunk]), strict=True):
            names = [folded(unit) for unit in words.units]
            # A word of which the tokenizer keeps nothing has zeros for a vector.
            rows = [i for i, name in enumerate(names) if selection.keeps(name)]
            rows = [i for i in rows if words.vectors[i].any()]
            if rows:
                self._append(sentence, words, names, rows)
        self._since += 1
        if self._since >= NOTE_EVERY:
            self.note()

    def _append(self, sentence: Sentence, words: Words, names: list[str], rows: list[int]) -> None:
        text = sentence.text.encode()
        end = self.text_bytes + len(text)
        vectors = words.vectors[rows]
        if not np.abs(vectors).max() < 65504:
            raise UnsupportedError(
                f"a vector of {sentence.text[:60]!r} has a number of {np.abs(vectors).max()}, and "
                "an index holds up to 65,504; choose another layer"
            )
        places = np.empty((len(rows), 4), "<u4")
        places[:, 0], places[:, 1], places[:, 2:] = self.sentences, rows, words.offsets[rows]
        types = [self._type(names[i]) for i in rows]
        place = [self.text_bytes, end, sentence.document, sentence.offset]
        self._files["vectors.f16"].write(vectors.astype("<f2").tobytes())
        self._files["places.u32"].write(places.tobytes())
        self._files["types.u32"].write(np.array(types, "<u4").tobytes())
        self._files["sentences.u64"].write(np.array(place, "<u8").tobytes())
        self._files["text.utf8"].write(text)
        self.text_bytes, self.rows, self.sentences = end, self.rows + len(rows), self.sentences + 1

    def _type(self, name: str) -> int:
        known = self.types.get(name)
        if known is None:
            known = self.types[name] = len(self.types)
            self._files["words.txt"].write(name.encode() + b"\n")
        return known
