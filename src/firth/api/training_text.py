"""The token files of a run: of texts, of several languages, or of sources and targets."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from firth.errors import ConfigError, DataError
from firth.objectives import SentencePairs, SequenceToSequence
from firth.protocols import Vocabulary
from firth.recipes import DataSettings, Recipe
from firth.text.annotations import Annotator, write_marks
from firth.text.batches import PackedSequences
from firth.text.corpus import Corpus, first_characters
from firth.text.joined import JoinedDocuments
from firth.text.languages import (
    JoinedLanguages,
    MultilingualCorpus,
    open_tokens,
    smoothed_shares,
    write_languages,
)
from firth.text.pairs import PairedSequences, ParallelCorpus
from firth.text.shards import Shards, unigram_entropy, write_shards
from firth.text.streams import StreamedSequences
from firth.text.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

AnyCorpus = Corpus | ParallelCorpus | MultilingualCorpus

_SOURCE, _MARKS = "source", "marks"
"""Beside the folder of a run's texts: that of the sources of pairs, and the marks of tokens."""


@dataclass(frozen=True)
class TrainingText:
    """What a run learns from, or is validated on."""

    shards: Shards | JoinedLanguages
    """Texts, or targets."""
    source: Shards | None = None
    """Of pairs."""
    marks: np.ndarray | None = None
    """(num_tokens) uint8 of each token, where the objective masks marked spans."""

    @property
    def num_tokens(self) -> int:
        return self.shards.num_tokens + (0 if self.source is None else self.source.num_tokens)

    @property
    def num_documents(self) -> int:
        return self.shards.num_documents

    @property
    def unigram_entropy(self) -> float:
        """Nats a token of the best model that ignores the context."""
        return unigram_entropy(self.shards.token_counts)

    @property
    def languages(self) -> "dict[str, TrainingText]":
        """The text of each language; of one alone, itself under no name."""
        if not isinstance(self.shards, JoinedLanguages):
            return {"": self}
        return {name: TrainingText(shards) for name, shards in self.shards.parts.items()}

    def describe(self) -> str:
        """How much it is."""
        shards = self.shards
        languages = f": {shards.describe()}" if isinstance(shards, JoinedLanguages) else ""
        what = "documents" if self.source is None else "pairs"
        return f"{self.num_tokens:,} tokens in {self.num_documents:,} {what}{languages}"

    def batches(
        self, recipe: Recipe, vocabulary: Vocabulary, seed: int, *, training: bool = True
    ) -> PackedSequences | PairedSequences | StreamedSequences:
        """The sequences of each step, as the recipe has them; streams vary in training alone."""
        shape: dict[str, Any] = {
            "max_length": recipe.data.max_length,
            "batch_tokens": recipe.training.batch_tokens,
            "seed": seed,
        }
        if self.source is not None:
            assert isinstance(self.shards, Shards)
            return PairedSequences(self.source, self.shards, vocabulary, **shape)
        if recipe.data.packing == "streams":
            text = JoinedDocuments(self.shards, vocabulary.last)
            length = recipe.data.max_length
            return StreamedSequences(
                text,
                vocabulary,
                streams=recipe.training.batch_tokens // length,
                length=length if training else min(length, int(text.document_starts[-1]) - 1),
                seed=seed,
                vary=training and recipe.data.vary,
                restart=recipe.data.restart if training else 0.0,
                shift=training,
                backward=getattr(recipe.objective, "backward", False),
            )
        joined = recipe.data.packing == "full"
        shards = self.shards
        return PackedSequences(
            JoinedDocuments(shards, vocabulary.last) if joined else shards,
            vocabulary,
            **shape,
            spare=recipe.objective.spare,
            visits=shards.document_visits if isinstance(shards, JoinedLanguages) else None,
            marks=self.marks,
        )


def write_training_text(
    corpus: AnyCorpus,
    tokenizer: Tokenizer,
    run: Path,
    part: str,
    find: Callable[[], Annotator] | None,
) -> None:
    """Tokenises a corpus into the folder `data/<part>` of a run.

    Args:
        corpus: the text.
        tokenizer: cuts it.
        run: the run directory.
        part: "train" or "valid".
        find: gives what finds the spans to mark; None where the objective needs no marks.

    Raises:
        DataError: if the run's text is another, or the corpus cannot be read.
    """
    folder = run / "data" / part
    if isinstance(corpus, MultilingualCorpus):
        write_languages(corpus, tokenizer, folder)
        return
    if isinstance(corpus, Corpus):
        shards = write_shards(corpus, tokenizer, folder)
        marks = folder.with_suffix(f".{_MARKS}")
        done = marks.is_file() and marks.stat().st_size == shards.num_tokens
        if find is not None and not done:
            write_marks(corpus, find(), tokenizer, shards, marks, needed=part == "train")
        return
    source = write_shards(corpus.source, tokenizer, folder.with_suffix(f".{_SOURCE}"))
    target = write_shards(corpus.target, tokenizer, folder)
    if not source.num_documents == target.num_documents == len(corpus.source.texts):
        raise DataError(
            f"of {len(corpus.source.texts):,} {part} pairs some have a side of which the tokenizer "
            "keeps nothing (marks alone, say); leave them out"
        )


def open_training_text(run: Path, part: str, recipe: Recipe) -> TrainingText:
    """The text that `write_training_text` left in a run."""
    folder = run / "data" / part
    source, marks = (folder.with_suffix(f".{suffix}") for suffix in (_SOURCE, _MARKS))
    return TrainingText(
        open_tokens(folder, recipe.data.smoothing if part == "train" else 1.0),
        Shards.open(source) if source.is_dir() else None,
        np.memmap(marks, np.uint8, mode="r") if marks.is_file() else None,
    )


def check_text(recipe: Recipe, corpus: AnyCorpus, valid: AnyCorpus | None) -> None:
    """Refuses text that does not suit the recipe, or held-out text that does not suit the corpus;
    says what a document is, which settings the text makes idle, and if what is held out is part of
    the corpus.

    Raises:
        ConfigError: if they do not fit.
    """
    _check_corpus(recipe, corpus)
    if valid is not None:
        _check_corpus(recipe, valid)
        _check_same_languages(corpus, valid)
    _warn_of_text(recipe, corpus, valid)


def _check_corpus(recipe: Recipe, corpus: AnyCorpus) -> None:
    """Refuses what is no corpus, pairs where texts are needed, and the other way round.

    Raises:
        ConfigError: if they do not fit.
    """
    if not isinstance(corpus, AnyCorpus):
        raise ConfigError(
            f"the corpus is a {type(corpus).__name__}; expected a firth.Corpus, for instance "
            "firth.Corpus.from_files(paths) or firth.Corpus.from_texts(texts)"
        )
    if isinstance(corpus, MultilingualCorpus):
        _check_languages(recipe)
    check_pairs(recipe, given=isinstance(corpus, ParallelCorpus))


def check_pairs(recipe: Recipe, *, given: bool) -> None:
    """Refuses pairs where the recipe learns from plain text, and the other way round.

    Raises:
        ConfigError: if they do not fit.
    """
    wanted = isinstance(recipe.objective, SequenceToSequence)
    if wanted == given:
        return
    if wanted:
        raise ConfigError(
            f"the recipe {recipe.name} learns from pairs of texts, and this corpus is plain text; "
            "give the targets too (firth pretrain transformer SOURCE --target TARGET)"
        )
    raise ConfigError(
        f"the recipe {recipe.name} learns from plain text, and this corpus is pairs; leave the "
        "targets out, or choose the recipe transformer"
    )


def check_documents(recipe: Recipe, count: int) -> None:
    """Refuses a single document where pairs need texts of others.

    Raises:
        DataError: if there is one alone.
    """
    objective = recipe.objective
    if isinstance(objective, SentencePairs) and objective.kind == "next" and count < 2:
        raise DataError(
            "next-sentence pairs need a second document to take text from, and the corpus is one; "
            "have smaller documents (--documents block), or use --objective.kind order"
        )


def _check_same_languages(corpus: AnyCorpus, valid: AnyCorpus) -> None:
    """Refuses held-out text of other languages than the corpus.

    Raises:
        ConfigError: if the languages are not the same.
    """
    of_corpus, of_valid = (
        one.languages if isinstance(one, MultilingualCorpus) else () for one in (corpus, valid)
    )
    if of_corpus != of_valid:
        raise ConfigError(
            f"the corpus has the languages {', '.join(of_corpus) or 'of no name'} and the held-out "
            f"text {', '.join(of_valid) or 'of no name'}; expected the same"
        )


def _warn_of_text(recipe: Recipe, corpus: AnyCorpus, valid: AnyCorpus | None) -> None:
    _say_documents(corpus)
    if recipe.data.smoothing != DataSettings.smoothing and not isinstance(
        corpus, MultilingualCorpus
    ):
        logger.warning("data.smoothing has no effect: the text is of one language")
    if valid is None:
        return
    if recipe.data.valid != DataSettings.valid:
        logger.warning("data.valid has no effect: the held-out text is given")
    if both := sorted(_files(corpus) & _files(valid)):
        logger.warning(
            "%s: in the corpus and in the held-out text, whose perplexity is then of text that was "
            "trained on; leave what is held out out of the corpus",
            both[0] if len(both) == 1 else f"{both[0]} and {len(both) - 1} other files",
        )


def _files(corpus: AnyCorpus) -> set[Path]:
    """The files of a corpus; none of one that is in memory, as pairs are."""
    parts = [part for _, part in by_language(corpus)]
    return {path.resolve() for part in parts if isinstance(part, Corpus) for path in part.files}


def _check_languages(recipe: Recipe) -> None:
    objective = recipe.objective
    if isinstance(objective, SentencePairs) and objective.kind == "next":
        raise ConfigError(
            "the second halves of next-sentence pairs would be of other languages, which gives the "
            "answer away; use --objective.kind order"
        )
    if recipe.data.packing != "documents":
        raise ConfigError("text of several languages needs data.packing to be documents")
    if recipe.data.spans != "none":
        raise ConfigError("data.spans is for text of one language; leave it out")
    smoothed_shares([1.0], recipe.data.smoothing)


def by_language(corpus: AnyCorpus) -> Iterator[tuple[str, Corpus | ParallelCorpus]]:
    """The corpus of each language; one alone under no name."""
    if isinstance(corpus, MultilingualCorpus):
        yield from corpus.parts
    else:
        yield "", corpus


def all_texts(corpus: AnyCorpus, smoothing: float) -> Iterator[str]:
    """The documents of a corpus: of pairs both sides, of languages by their smoothed shares."""
    if isinstance(corpus, MultilingualCorpus):
        yield from corpus.smoothed(smoothing)
    elif isinstance(corpus, ParallelCorpus):
        yield from corpus.source
        yield from corpus.target
    else:
        yield from corpus


_LOOKED = 20
"""Files of which it is said what a document is: each is opened for that."""
_FEW = 20
"""Documents that are too few to stand for the others."""


def _say_documents(corpus: AnyCorpus) -> None:
    """Logs what was taken for a document, where that was not said; of many files of the first."""
    for name, part in by_language(corpus):
        if not isinstance(part, Corpus) or part.documents != "auto":
            continue
        found = replace(part, files=part.files[:_LOOKED]).describe()
        units = Counter(one.unit for one in found if one.format.startswith(".txt"))
        for unit, count in units.items():
            files = "1 file" if count == 1 else f"{count} files"
            files += f" of the first {_LOOKED}" if len(part.files) > _LOOKED else ""
            where = name and f"{name}: "
            logger.info("%sone document a %s, in %s (--documents)", where, unit, files)


def warn_of_few(num_documents: int) -> None:
    """Says if the documents that a split holds out can hardly stand for the others."""
    if num_documents < _FEW:
        logger.warning(
            "%d documents are held out, which may be unlike the others: have smaller documents "
            "(--documents line or block), hold out more (--data.valid 0.1), or give the held-out "
            "text (--valid)",
            num_documents,
        )


def some_texts(corpus: AnyCorpus, size: int) -> Iterator[str]:
    """About `size` characters, of every language, file and side of pairs the first documents."""
    parts = [part for _, part in by_language(corpus)]
    for part in parts:
        if isinstance(part, Corpus):
            yield from part.sample(size // len(parts))
            continue
        for side in (part.source, part.target):
            yield from first_characters(side, size // (2 * len(parts)))
