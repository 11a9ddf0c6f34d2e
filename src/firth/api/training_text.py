"""The token files of a run, of texts or of sources and targets, and the batches drawn from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firth.errors import ConfigError, DataError
from firth.objectives import SequenceToSequence
from firth.protocols import Vocabulary
from firth.recipes import Recipe
from firth.text.batches import PackedSequences
from firth.text.corpus import Corpus
from firth.text.joined import JoinedDocuments
from firth.text.pairs import PairedSequences, ParallelCorpus
from firth.text.shards import Shards, write_shards
from firth.text.tokenizers import Tokenizer

AnyCorpus = Corpus | ParallelCorpus

_SOURCE = "source"
"""Beside the folder of a run's texts, or of its targets: that of the sources."""


@dataclass(frozen=True)
class TrainingText:
    """What a run learns from, or is validated on."""

    shards: Shards
    """Texts, or targets."""
    source: Shards | None = None
    """Of pairs."""

    @staticmethod
    def write(corpus: AnyCorpus, tokenizer: Tokenizer, run: Path, part: str) -> "TrainingText":
        """Tokenises a corpus into the folder `data/<part>` of a run."""
        folder = run / "data" / part
        if isinstance(corpus, ParallelCorpus):
            source = write_shards(corpus.source, tokenizer, folder.with_suffix(f".{_SOURCE}"))
            target = write_shards(corpus.target, tokenizer, folder)
            if not source.num_documents == target.num_documents == len(corpus.source.texts):
                raise DataError(
                    f"of {len(corpus.source.texts):,} {part} pairs some have a side of which the "
                    "tokenizer keeps nothing (marks alone, say); leave them out"
                )
            return TrainingText(target, source)
        return TrainingText(write_shards(corpus, tokenizer, folder))

    @staticmethod
    def open(run: Path, part: str) -> "TrainingText":
        """The text that `write` left in a run."""
        folder = run / "data" / part
        source = folder.with_suffix(f".{_SOURCE}")
        return TrainingText(Shards.open(folder), Shards.open(source) if source.is_dir() else None)

    @property
    def num_tokens(self) -> int:
        return self.shards.num_tokens + (0 if self.source is None else self.source.num_tokens)

    @property
    def num_documents(self) -> int:
        return self.shards.num_documents

    def batches(
        self, recipe: Recipe, vocabulary: Vocabulary, seed: int
    ) -> PackedSequences | PairedSequences:
        """The sequences of each step, as the recipe has them."""
        shape: dict[str, Any] = {
            "max_length": recipe.data.max_length,
            "batch_tokens": recipe.training.batch_tokens,
            "seed": seed,
        }
        if self.source is not None:
            return PairedSequences(self.source, self.shards, vocabulary, **shape)
        joined = recipe.data.packing == "full"
        return PackedSequences(
            JoinedDocuments(self.shards, vocabulary.last) if joined else self.shards,
            vocabulary,
            **shape,
            spare=recipe.objective.spare,
        )


def check_corpus(recipe: Recipe, corpus: AnyCorpus) -> None:
    """Refuses pairs where texts are needed, and the other way round.

    Raises:
        ConfigError: if they do not fit.
    """
    pairs = isinstance(recipe.objective, SequenceToSequence)
    if pairs == isinstance(corpus, ParallelCorpus):
        return
    if pairs:
        raise ConfigError(
            f"the recipe {recipe.name} learns from pairs of texts, and this corpus is plain text; "
            "give the targets too (firth pretrain transformer SOURCE --target TARGET)"
        )
    raise ConfigError(
        f"the recipe {recipe.name} learns from plain text, and this corpus is pairs; leave the "
        "targets out, or choose the recipe transformer"
    )


def all_texts(corpus: AnyCorpus) -> Iterator[str]:
    """The documents of a corpus, of pairs both sides."""
    if isinstance(corpus, ParallelCorpus):
        yield from corpus.source
        yield from corpus.target
    else:
        yield from corpus
