"""A language model's body with a task's head: what an adaptation trains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from firth.errors import ConfigError, DataError
from firth.inference.forward import Engine, windows
from firth.models.heads import Head, RecurrentHead, WordHead
from firth.models.mix import LayerMix, SequenceHead, pool, pool_words
from firth.protocols import (
    Batch,
    Context,
    Encoding,
    Example,
    Loss,
    Scores,
    Targets,
    Task,
    Text,
    Unit,
    Vocabulary,
)
from firth.text.batches import collate


class AdaptedNetwork(nn.Module):
    """Body, learned layer mix (where there is one) and head.

    Args:
        body: the language model.
        head: gives scores of texts or of words.
        mix: of the layers, at the head's input.
        output_mix: a second one, laid beside the states of a recurrent head (Peters et al. 2018,
            section 3.3).
        layers: which of the body's `hidden_states` are mixed; None for all.
    """

    def __init__(
        self,
        body: nn.Module,
        head: Head,
        mix: LayerMix | None = None,
        *,
        output_mix: LayerMix | None = None,
        layers: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.body, self.head, self.mix, self.output_mix = body, head, mix, output_mix
        self.layers = layers

    def forward(self, batch: Batch) -> Tensor:
        """(B, num_outputs) scores, or (M, num_outputs) where the head is about words."""
        return self.score(*self.features(batch))

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the mix and the head see of a batch, as far as the body alone decides it.

        Pooling by mean or by one token commutes with the mix; so a head that sees one vector a
        text gets it from features that are pooled already.

        Returns:
            (U, layers, D) states of U tokens, words or texts, layer-normalised where the mix says
            so, or without a mix the last layer's (U, D); and on the CPU where each text begins.
        """
        if self.mix is None:
            states = self.body(batch).last  # (N, D)
        else:
            every = self.body(batch, hidden_states=True).hidden_states
            chosen = every if self.layers is None else [every[i] for i in self.layers]
            states = self.mix.normalise(torch.stack(list(chosen), dim=1).float())  # (N, layers, D)
        if batch.words is not None and batch.word_starts is not None:
            assert isinstance(self.head, (WordHead, RecurrentHead))
            return pool_words(states, batch.words, self.head.pooling), batch.word_starts
        if self.mix is not None and isinstance(self.head, SequenceHead):
            pooled = pool(states.flatten(1), batch.starts, self.head.pooling)
            return pooled.view(-1, *states.shape[1:]), torch.arange(len(pooled) + 1)
        return states, batch.starts

    def score(self, states: Tensor, starts: Tensor) -> Tensor:
        """Scores from what `features` gives."""
        if self.mix is None:
            return self.head(states, starts)
        mixed = self.mix.combine(states)
        if self.output_mix is None:
            return self.head(mixed, starts)
        return self.head(mixed, starts, self.output_mix.combine(states))

    def penalty(self) -> Tensor:
        """||w||^2 of the mixes' weights."""
        mixes = [mix for mix in (self.mix, self.output_mix) if mix is not None]
        return torch.stack([mix.penalty() for mix in mixes]).sum()


TaskNetwork = Literal["head", "rnn", "gru", "lstm", "bigru", "bilstm"]
"""What stands on the features: a head that sees each word or text alone, or a recurrent network."""


def task_head(
    head: Head,
    network: TaskNetwork,
    *,
    hidden_size: int,
    num_layers: int,
    dropout: float,
    second_size: int = 0,
) -> Head:
    """The head itself, or a recurrent network for the same inputs and outputs."""
    if network == "head":
        return head
    return RecurrentHead(
        head.out.in_features,
        head.out.out_features,
        network=network,
        hidden_size=hidden_size,
        num_layers=num_layers,
        unit=head.unit,
        second_size=second_size,
        dropout=dropout,
        pooling=head.pooling if isinstance(head, WordHead) else "first",
    )


class TaskTokenizer(Protocol):
    """The part of a tokenizer that tasks need."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def encode_ids(
        self, texts: Sequence[Text], *, max_length: int | None = None
    ) -> list[np.ndarray]: ...

    def encode_pairs_ids(
        self, pairs: Sequence[tuple[Text, Text]], *, max_length: int | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]: ...

    def encode_batch(self, texts: Sequence[Text]) -> list[Encoding]: ...


@dataclass(frozen=True)
class EncodedExamples:
    """Examples as token ids, in the model's window.

    A text that is longer is cut at its end; where words are asked for, it becomes several
    overlapping sequences, and none of its words is lost.
    """

    ids: list[np.ndarray]
    """Of each sequence."""
    segments: list[np.ndarray] | None
    first: np.ndarray
    """(E+1) int64: example e is sequences first[e]:first[e+1]."""
    words: list[np.ndarray] | None = None
    """Of each example (W, 2): the first token of a word and the one after its last, counted from
    the first token of the example's first sequence; equal for a word without tokens."""

    @staticmethod
    def of(
        examples: Sequence[Example],
        tokenizer: TaskTokenizer,
        max_length: int,
        unit: Unit = "sequence",
        context: Context = "both",
        bare: bool = False,
    ) -> "EncodedExamples":
        """Encodes texts, pairs with their segments, or the words of texts.

        Args:
            examples: the texts.
            tokenizer: of the model.
            max_length: tokens of a sequence.
            unit: what the task is about.
            context: where the model looks, which decides in which window a word of a long text is
                read (see `windows`).
            bare: leave out the tokens that open and close a text: static vectors have none for
                them, and a mean with zeros would say how short a text is.
        """
        every = np.arange(len(examples) + 1)
        if unit == "word":
            texts = [example.texts[0] for example in examples]
            return _encode_words(texts, tokenizer, max_length, context)
        if examples and len(examples[0].texts) == 2:
            _leave_room(tokenizer.encode_pairs_ids([("", "")])[0][0], max_length)
            pairs = [(example.texts[0], example.texts[1]) for example in examples]
            encoded = tokenizer.encode_pairs_ids(pairs, max_length=max_length)
            ids, segments = [ids for ids, _ in encoded], [types for _, types in encoded]
        else:
            texts = [example.texts[0] for example in examples]
            ids, segments = tokenizer.encode_ids(texts, max_length=max_length), None
            ids = _not_empty(ids, tokenizer.vocabulary)
        if bare:
            kept = [_inside(one, tokenizer.vocabulary) for one in ids]
            ids = [one[keep] for one, keep in zip(ids, kept, strict=True)]
            if segments is not None:
                segments = [one[keep] for one, keep in zip(segments, kept, strict=True)]
        return EncodedExamples(ids, segments, every)

    def __len__(self) -> int:
        return len(self.first) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """(E) tokens of each example."""
        ends = np.concatenate(([0], np.cumsum([len(one) for one in self.ids], dtype=np.int64)))
        return np.diff(ends[self.first])

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.ids), default=0)

    @cached_property
    def counts(self) -> np.ndarray:
        """(E) rows of scores of each example: one, or one for each word."""
        if self.words is None:
            return np.ones(len(self), np.int64)
        return np.array([len(words) for words in self.words], np.int64)

    def batch(self, chosen: np.ndarray, targets: Targets | None = None) -> Batch:
        """Some examples end to end, with their targets."""
        sequences = [s for e in chosen for s in range(self.first[e], self.first[e + 1])]
        batch = collate(
            [self.ids[s] for s in sequences],
            None if self.segments is None else [self.segments[s] for s in sequences],
        )
        batch = replace(batch, targets=None if targets is None else lay_targets(targets, chosen))
        if self.words is None:
            return batch
        begins = _ends(self.lengths[chosen])[:-1]
        words = [self.words[e] + begin for e, begin in zip(chosen, begins, strict=True)]
        return replace(
            batch,
            words=torch.from_numpy(np.concatenate(words)),
            word_starts=torch.from_numpy(_ends(self.counts[chosen])),
        )


def _leave_room(special: np.ndarray, max_length: int) -> None:
    if len(special) >= max_length:
        raise ConfigError(
            f"max_length is {max_length}, and a pair has {len(special)} special tokens, so that no "
            f"text would be left; expected at least {len(special) + 1}"
        )


def lay_targets(targets: Targets, chosen: np.ndarray) -> Tensor:
    """The targets of some examples: rows of one array, or end to end those of their words."""
    if isinstance(targets, np.ndarray):
        return torch.from_numpy(targets[chosen])
    return torch.from_numpy(np.concatenate([targets[e] for e in chosen]))


def _ends(counts: np.ndarray) -> np.ndarray:
    """(n+1) where each of some parts begins, and the end of the last."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _encode_words(
    texts: Sequence[Text], tokenizer: TaskTokenizer, max_length: int, context: Context
) -> EncodedExamples:
    if text := next((text for text in texts if isinstance(text, str)), None):
        raise DataError(
            f"found the text {text[:40]!r}, expected a list of words (task.example cuts)"
        )
    encodings = tokenizer.encode_batch(texts)
    pieces = windows(encodings, max_length, context=context)
    first = np.searchsorted([piece.text for piece in pieces], np.arange(len(texts) + 1))
    words = [
        _token_ranges(encoding.words, len(text))
        for encoding, text in zip(encodings, texts, strict=True)
    ]
    for e, ranges in enumerate(words):
        if first[e + 1] - first[e] > 1:
            own = pieces[first[e] : first[e + 1]]
            before = _ends(np.array([len(piece.ids) for piece in own]))
            closed = int(encodings[e].words[-1] < 0)  # by a token that belongs to no word
            for row in ranges:
                i = next(i for i, piece in enumerate(own) if row[0] < piece.end)
                moved = before[i] - own[i].offset
                last = before[i + 1] - closed * (i < len(own) - 1)
                row[:] = row[0] + moved, min(row[1] + moved, max(last, row[0] + moved))
    ids = _not_empty([piece.ids for piece in pieces], tokenizer.vocabulary)
    return EncodedExamples(ids, None, first, words)


def _not_empty(ids: list[np.ndarray], vocabulary: Vocabulary) -> list[np.ndarray]:
    """Sequences of at least a token: the opening one, where a vocabulary adds none and has none."""
    return [one if len(one) else np.array([vocabulary.first]) for one in ids]


def _inside(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Which tokens neither open nor close a text; of an empty one the first stays."""
    inside = (ids != vocabulary.first) & (ids != vocabulary.last)
    inside[0] |= not inside.any()
    return inside


def _token_ranges(owners: np.ndarray, count: int) -> np.ndarray:
    """(count, 2) first token of each word and the one after its last.

    Args:
        owners: (n) the word of each token, rising, -1 for special tokens.
        count: number of words; one without tokens gets an empty range.
    """
    inside = np.flatnonzero(owners >= 0)
    found = owners[inside]
    low = np.searchsorted(found, np.arange(count))
    high = np.searchsorted(found, np.arange(count), side="right")
    none = low == high
    places = np.append(inside, 0)
    begin, end = places[low], places[high - 1] + 1
    begin[none] = end[none] = 0
    return np.stack([begin, end], axis=1).reshape(-1, 2)


@dataclass(frozen=True)
class TaskObjective:
    """A task's loss as the training loop sees it."""

    task: Task

    def loss(self, model: AdaptedNetwork, batch: Batch) -> Loss:
        """Summed loss of the batch's rows."""
        assert batch.targets is not None
        return self.task.loss(model(batch), batch.targets)


def score_examples(engine: Engine, data: EncodedExamples) -> Scores:
    """Scores of an adapted network in the examples' order.

    Returns:
        (E, num_outputs) float32, or for words a list of (W, num_outputs).
    """
    network = engine.model
    assert isinstance(network, AdaptedNetwork)

    def compute(_chosen: np.ndarray, batch: Batch) -> np.ndarray:
        return network(batch).float().cpu().numpy()

    found = engine.run_batches(data.lengths, data.batch, compute)
    return in_order(((chosen, rows) for chosen, _, rows in found), data.counts, network.head)


def in_order(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], counts: np.ndarray, head: Head
) -> Scores:
    """The rows of scores of batches, put into the examples' order.

    Args:
        parts: the indexes of some examples, and their rows end to end.
        counts: (E) rows of each example.
        head: that they come from.
    """
    scores = [np.empty((0, head.out.out_features), np.float32)] * len(counts)
    for chosen, rows in parts:
        for e, own in zip(chosen, np.split(rows, np.cumsum(counts[chosen])[:-1]), strict=True):
            scores[e] = own
    if head.unit == "word":
        return scores
    return np.concatenate(scores) if scores else np.empty((0, head.out.out_features), np.float32)
