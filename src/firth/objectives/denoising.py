"""Text to text without labels: an encoder reads a damaged text, a decoder writes what is missing.

Raffel et al. 2020 (T5), section 3.3, table 3. The decoder is opened by the vocabulary's first token
and predicts the closing one; see `SequenceToSequence` for the loss.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from firth.errors import ConfigError
from firth.objectives.masked import marks_of
from firth.objectives.prediction import cross_entropy
from firth.objectives.sequence_to_sequence import teacher_forced
from firth.protocols import INSIDE, OPENS, OUTSIDE, Batch, Loss, Sequences, Vocabulary

Noise = Literal["spans", "iid", "salient"]


@dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Spans are taken out and written by the decoder (Raffel et al. 2020, section 3.3.4).

        source: Thank you <X> me to your party <Y> week
        target: <X> for inviting <Y> last <Z>

    noise "spans": a sequence of n tokens loses m = round(rate n) in round(m / mean_length) spans;
    the lengths of the spans, and of the stretches between them, are drawn uniformly among all that
    add up (`random_spans_noise_mask` of the published program). noise "iid": each token is lost
    with probability `rate`, and neighbours that are lost share a sentinel (section 3.3.1). noise
    "salient": a sequence loses one of its marked spans (`data.spans`), all alike (Guu et al. 2020,
    REALM, section 3.4; Roberts et al. 2020): what facts are asked about. Departures: the
    papers take one of each sentence; a sequence without such a span is not left out, but loses
    spans of the first kind; "iid" leaves spans beyond the number of sentinels in the text.
    """

    rate: float = 0.15
    """Share of the tokens that is taken out."""
    mean_length: float = 3.0
    """Of the spans, in tokens."""
    noise: Noise = "spans"
    """How the tokens are chosen."""

    models: ClassVar[tuple[str, ...]] = ("EncoderDecoderConfig",)
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0
    """Tokens it adds to a sequence."""
    predicts: ClassVar[str] = "of the tokens taken out, sentinels included"
    """What its perplexity is about."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"SpanCorruption.rate is {self.rate}, expected between 0 and 1")
        if self.mean_length < 1:
            raise ConfigError(
                f"SpanCorruption.mean_length is {self.mean_length}, expected at least 1"
            )

    def for_validation(self) -> "SpanCorruption":
        """The same objective."""
        return self

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """Takes the spans out."""
        ids, lengths = inner_tokens(sequences)
        if self.noise == "iid":
            room = len(sequences.vocabulary.sentinels) - 1
            lost = fewer_spans(noise_tokens(lengths, self.rate, rng), lengths, room, rng)
        else:
            lost = noise_spans(lengths, self.rate, self.mean_length, rng)
        if self.noise == "salient":
            marks = marks_of(sequences)[inner_positions(sequences)]
            lost = salient_or(lost, marks, lengths, rng)
        source, target = take_out(ids, lengths, lost, sequences.vocabulary)
        return teacher_forced(source, target, sequences.vocabulary)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy of the targets."""
        return cross_entropy(model, batch)


@dataclass(frozen=True, kw_only=True)
class Deshuffling:
    """The tokens come in random order and the text is to be written (Raffel et al. 2020, 3.3.1)."""

    models: ClassVar[tuple[str, ...]] = ("EncoderDecoderConfig",)
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0
    """Tokens it adds to a sequence."""
    predicts: ClassVar[str] = "of the text put in order"
    """What its perplexity is about."""

    def for_validation(self) -> "Deshuffling":
        """The same objective."""
        return self

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """Shuffles each sequence."""
        ids, lengths = inner_tokens(sequences)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        shuffled = ids[np.lexsort((rng.random(len(ids)), owner))]
        return teacher_forced(
            (shuffled, lengths),
            (ids, lengths),
            sequences.vocabulary,
            ends=sequences.ends_document,
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy of the targets."""
        return cross_entropy(model, batch)


Flat = tuple[np.ndarray, np.ndarray]
"""Token ids of several sequences end to end, and the length of each."""


def inner_positions(sequences: Sequences) -> np.ndarray:
    """(N) bool: False for the opening and the closing token of each sequence."""
    inner = np.ones(len(sequences.ids), dtype=bool)
    inner[sequences.starts[:-1]] = False
    inner[sequences.starts[1:] - 1] = False
    return inner


def inner_tokens(sequences: Sequences) -> Flat:
    """The tokens between the opening and the closing token of each sequence."""
    return sequences.ids[inner_positions(sequences)], np.diff(sequences.starts) - 2


def salient_or(
    lost: np.ndarray, marks: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(N) bool: one marked span of each sequence; where there is none, what is `lost` anyway.

    Args:
        lost: (N) bool.
        marks: (N) which tokens open marked spans, or lie inside them.
        lengths: (B) of the sequences that the N tokens are of.
        rng: chooses the spans.
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = np.diff(owner, prepend=-1) > 0
    opens = (marks == OPENS) | ((marks == INSIDE) & first)  # a piece may begin inside a span
    within = marks != OUTSIDE
    span = np.cumsum(opens) - 1
    counts = np.bincount(owner[opens], minlength=len(lengths))
    chosen = np.cumsum(counts) - counts + (rng.random(len(lengths)) * counts).astype(np.int64)
    return np.where(counts[owner] > 0, within & (span == chosen[owner]), lost)


def noise_spans(
    lengths: np.ndarray, rate: float, mean_length: float, rng: np.random.Generator
) -> np.ndarray:
    """(N) bool: which tokens of sequences of these lengths are lost, in spans."""
    lost = np.clip(np.round(lengths * rate), 1, np.maximum(1, lengths - 1)).astype(np.int64)
    lost = np.minimum(lost, lengths)
    kept = lengths - lost
    spans = np.maximum(1, np.round(lost / mean_length)).astype(np.int64)
    spans = np.minimum(spans, np.maximum(1, np.minimum(lost, kept)))
    between, inside = _segments(kept, spans, rng), _segments(lost, spans, rng)
    return np.repeat(np.tile([False, True], len(inside)), np.stack([between, inside], 1).ravel())


def _segments(totals: np.ndarray, parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cuts each total into so many parts, all ways alike; every part of a total > 0 is positive."""
    room = np.maximum(totals, 1)  # a total of 0 is one part, emptied below
    owner = np.repeat(np.arange(len(room)), room)
    first = np.cumsum(room) - room
    key = rng.random(len(owner))
    key[first] = -1.0  # the first item always opens a part
    order = np.lexsort((key, owner))
    rank = np.empty(len(owner), dtype=np.int64)
    rank[order] = np.arange(len(owner)) - first[owner]
    opens = rank < parts[owner]
    sizes = np.bincount(np.cumsum(opens) - 1)
    sizes[(np.cumsum(parts) - parts)[totals == 0]] = 0
    return sizes


def noise_tokens(lengths: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """(N) bool: which tokens are lost, each with probability `rate`, at least one a sequence."""
    lost = rng.random(int(lengths.sum())) < rate
    owner = np.repeat(np.arange(len(lengths)), lengths)
    none = np.bincount(owner, weights=lost, minlength=len(lengths)) == 0
    none &= lengths > 0
    place = np.cumsum(lengths) - lengths + (rng.random(len(lengths)) * lengths).astype(np.int64)
    lost[place[none]] = True
    return lost


def fewer_spans(
    lost: np.ndarray, lengths: np.ndarray, most: int, rng: np.random.Generator
) -> np.ndarray:
    """(N) bool: of sequences with more spans of lost tokens, `most` at random stay lost.

    Args:
        lost: (N) bool.
        lengths: (B) of the sequences that the N tokens are of.
        most: spans.
        rng: chooses them.
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    opens = _opening(lost, owner)
    spans = owner[opens]
    if not len(spans) or np.bincount(spans).max() <= most:
        return lost
    order = np.lexsort((rng.random(len(spans)), spans))
    counts = np.bincount(spans, minlength=len(lengths))
    nth = np.empty(len(spans), np.int64)
    nth[order] = np.arange(len(spans)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.append(nth < most, False)
    return lost & kept[np.where(lost, np.cumsum(opens) - 1, -1)]


def _opening(lost: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(N) bool: the first token of each span of lost ones."""
    opens = lost.copy()
    opens[1:] &= ~lost[:-1] | (owner[1:] != owner[:-1])
    return opens


def take_out(
    ids: np.ndarray, lengths: np.ndarray, lost: np.ndarray, vocabulary: Vocabulary
) -> tuple[Flat, Flat]:
    """Source and target: each span of lost tokens is replaced by the next sentinel.

    The target gives each sentinel followed by what it stands for, then one more sentinel.

    Raises:
        ConfigError: if a sequence has more spans than the vocabulary has sentinels.
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    opens = _opening(lost, owner)
    spans = np.bincount(owner[opens], minlength=len(lengths))
    sentinels = _sentinels(vocabulary, int(spans.max(initial=0)) + 1)
    number = np.arange(len(owner[opens])) - np.repeat(np.cumsum(spans) - spans, spans)
    marks = sentinels[number]
    source = ids.copy()
    source[opens] = marks
    stays = opens | ~lost
    source_lengths = np.bincount(owner[stays], minlength=len(lengths))
    # A lost token that opens a span takes two places in the target: the sentinel's and its own.
    target = np.repeat(ids[lost], 1 + opens[lost])
    at = np.flatnonzero(opens[lost]) + np.arange(len(marks))
    target[at] = marks
    target_lengths = np.bincount(owner[lost], minlength=len(lengths)) + spans
    ends = np.cumsum(target_lengths)
    target = np.insert(target, ends, sentinels[spans])
    return (source[stays], source_lengths), (target, target_lengths + 1)


def _sentinels(vocabulary: Vocabulary, needed: int) -> np.ndarray:
    found = len(vocabulary.sentinels)
    if found < needed:
        raise ConfigError(
            f"a sequence needs {needed} sentinel tokens and the vocabulary has {found}; set "
            f"tokenizer.sentinels to {max(100, needed)}, or shorten sequences (data.max_length)"
        )
    return np.array(vocabulary.sentinels)


@dataclass(frozen=True, kw_only=True)
class PrefixLM:
    """The rest of a text from its beginning, which is seen as a whole (Raffel et al. 2020, 3.2.3).

    Each sequence is cut at a place drawn uniformly. A decoder sees the tokens before it in both
    directions and predicts those after it; with `encoder` the first part goes to the encoder.
    Such a decoder reads prompts as a whole, too (`GPTConfig.whole_prompts`); it scores texts from
    left to right, as those of an empty prefix.
    """

    models: ClassVar[tuple[str, ...]] = ("GPTConfig", "EncoderDecoderConfig")
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0
    """Tokens it adds to a sequence."""
    predicts: ClassVar[str] = "of the next token after the prefix"
    """What its perplexity is about."""

    encoder: bool = False
    """Whether the model has an encoder of its own for the prefix."""

    def for_validation(self) -> "PrefixLM":
        """The same objective."""
        return self

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """Cuts each sequence in two."""
        ids, lengths = inner_tokens(sequences)
        cut = (rng.random(len(lengths)) * lengths).astype(np.int64)  # 0 to n - 1
        if self.encoder:
            place = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            first = place < np.repeat(cut, lengths)
            return teacher_forced(
                (ids[first], cut),
                (ids[~first], lengths - cut),
                sequences.vocabulary,
                ends=sequences.ends_document,
            )
        starts = sequences.starts
        place = np.arange(len(sequences.ids)) - np.repeat(starts[:-1], np.diff(starts))
        predicted = place >= np.repeat(cut, np.diff(starts))
        predicted[starts[1:] - 1] = False
        if sequences.ends_document is not None:
            predicted[starts[1:][~sequences.ends_document] - 2] = False
        at = np.flatnonzero(predicted)
        return Batch(
            input_ids=torch.from_numpy(sequences.ids),
            starts=torch.from_numpy(starts),
            prefix=torch.from_numpy(cut + 1),
            predict_at=torch.from_numpy(at),
            targets=torch.from_numpy(sequences.ids[at + 1]),
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy of the targets."""
        return cross_entropy(model, batch)
