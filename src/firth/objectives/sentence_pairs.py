"""Sentence pairs: masked LM, and whether the second segment follows the first."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from firth.errors import ConfigError
from firth.objectives.masked import MaskedLM
from firth.objectives.spans import ranges
from firth.protocols import Batch, Loss, Sequences


@dataclass(frozen=True, kw_only=True)
class SentencePairs:
    """Masked LM over pairs of segments, and a label for each pair.

        [CLS] A [SEP] B [SEP],   loss = mean of -log P(token) + mean of -log P(label | C)

    with C the pooled state of [CLS]. "Sentence" means any stretch of running text (Devlin et al.
    2019, section 3). A piece of a document is cut in two at a random word, and

    next:  half of the pieces keep their B (label 0); the others have one from a piece of another
           document (label 1). Devlin et al. 2019, section 3.1, task 2, and appendix A.2.
    order: half of the pieces keep their order (label 0), in the others A and B change places
           (label 1). Lan et al. 2020 (ALBERT), section 3.1.

    Neither label shows in the form: as the piece's own B does, another's begins with a word that is
    not the first of its piece, and ends where its piece ends; with A it fills the room of the piece
    up to less than a word (where there is as much text), and a piece that begins inside a word
    loses that part of it. A coin is tossed for each pair, as in the published programs; "next"
    takes one more or one less where a single piece would be to exchange.

    A piece of one word stays whole: [CLS] A [SEP], without a label that counts. Where more than
    half of those to exchange are of one document, some find no partner, and sometimes the last word
    of another piece is longer than the room: they keep their B and the label 0. Departure: another
    B is the end of a piece of the same batch, not of any document.
    """

    kind: Literal["next", "order"] = "next"
    """What the label says."""
    masked: MaskedLM = field(default_factory=MaskedLM)
    """The masked LM beside it."""
    weight: float = 1.0
    """Of the pairs' loss beside that of the masked tokens."""

    predicts: ClassVar[str] = MaskedLM.predicts
    """What its perplexity is about."""
    models: ClassVar[tuple[str, ...]] = ("BertConfig",)
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 1
    """Tokens that it adds to each sequence: the second [SEP]."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ConfigError(f"SentencePairs.weight is {self.weight}, expected 0 or more")

    def for_validation(self) -> "SentencePairs":
        """Batches in which the masked tokens alone count, so that perplexities compare."""
        return replace(self, masked=self.masked.for_validation(), weight=0.0)

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """Makes pairs of the pieces, then masks.

        `sequence_targets` (B) are the labels and `sequence_weights` (B) what each counts for: the
        predictions of the batch shared out evenly among its pairs, times `weight`. So the sum of
        the losses divided by the number of predictions is the sum of both means.

        Raises:
            ConfigError: if the documents of the sequences are not known, or none has a mask token.
        """
        pairs, segments, labels, whole = pair_up(sequences, self.kind, rng)
        batch = self.masked.prepare(pairs, rng)
        share = self.weight * batch.num_predictions / max(1, int((~whole).sum()))
        weights = np.where(whole, 0.0, share)
        return replace(
            batch,
            segments=torch.from_numpy(segments),
            sequence_targets=torch.from_numpy(labels),
            sequence_weights=torch.from_numpy(weights.astype(np.float32)),
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Both cross-entropies.

        The parts are sums like the total: "masked_lm", "pairs", and "pair_accuracy", which divided
        by the count is (`weight` times) the share of the labels that are found.
        """
        assert batch.predict_at is not None
        assert batch.targets is not None
        assert batch.sequence_targets is not None
        assert batch.sequence_weights is not None
        hidden = model(batch).last  # (N, D)
        at = hidden.index_select(0, batch.predict_at)  # (M, D)
        masked = model.prediction_loss(at, batch.targets)
        scores = model.pair_logits(hidden, batch.starts).float()  # (B, 2)
        labels, weights = batch.sequence_targets, batch.sequence_weights
        pairs = (F.cross_entropy(scores, labels, reduction="none") * weights).sum()
        right = ((scores.argmax(1) == labels) * weights).sum()
        parts = {"masked_lm": masked.detach(), "pairs": pairs.detach(), "pair_accuracy": right}
        return Loss(masked + pairs, batch.num_predictions, parts)


def pair_up(
    sequences: Sequences, kind: Literal["next", "order"], rng: np.random.Generator
) -> tuple[Sequences, np.ndarray, np.ndarray, np.ndarray]:
    """Cuts each sequence's piece in two, and exchanges or swaps the segments of half of them.

    Args:
        sequences: B sequences [CLS] piece [SEP], each piece of one document.
        kind: of the pairs.
        rng: gives the cuts and the choice.

    Returns:
        the pairs in order of length, segments (N) int64, labels (B) int64, and whole (B) bool: True
        where a piece could not be cut.
    """
    begin, end = _first_words(sequences), sequences.starts[1:] - 1
    words = _inner_words(sequences, begin)
    cut = _cuts(sequences, words, rng)
    whole = cut == end
    a_begin, a_length, b_begin, b_length = begin, cut - begin, cut, end - cut
    changed = ~whole & (rng.random(len(begin)) < 0.5)
    labels = np.zeros(len(begin), dtype=np.int64)
    if kind == "next":
        owner = _exchanged(sequences, whole, changed, rng)
        other = _last_words(sequences, words, begin, cut, owner)
        labels[(owner != np.arange(len(owner))) & (other < end[owner])] = 1
        b_begin = np.where(labels == 1, other, cut)
        b_length = np.where(labels == 1, end[owner], end) - b_begin
    else:
        labels[changed] = 1
        a_begin, b_begin = np.where(changed, cut, begin), np.where(changed, begin, cut)
        a_length, b_length = (
            np.where(changed, b_length, a_length),
            np.where(changed, a_length, b_length),
        )
    one = np.ones_like(begin)
    lengths = np.stack([one, a_length, one, b_length, np.where(whole, 0, one)], axis=1)  # (B, 5)
    begins = np.stack([sequences.starts[:-1], a_begin, end, b_begin, end], axis=1)
    order = np.argsort(lengths.sum(1), kind="stable")
    lengths, begins = lengths[order], begins[order]
    at = ranges(begins.ravel(), lengths.ravel())  # (N) where each token stood
    pairs = replace(
        sequences,
        ids=sequences.ids[at],
        starts=np.concatenate(([0], np.cumsum(lengths.sum(1)))),
        opens_word=sequences.opens_word[at],
        ends_document=None,
        documents=None,
        marks=None if sequences.marks is None else sequences.marks[at],
    )
    segments = np.repeat(np.tile([0, 0, 0, 1, 1], len(order)), lengths.ravel())
    return pairs, segments, labels[order], whole[order]


def _first_words(sequences: Sequences) -> np.ndarray:
    """(B) where the first word of each piece begins; that of the piece, if no word begins in it."""
    starts = sequences.starts
    inner = sequences.opens_word.copy()
    inner[starts[:-1]] = inner[starts[1:] - 1] = False
    words = np.flatnonzero(inner)
    first = np.searchsorted(words, starts)
    begin = starts[:-1] + 1
    some = np.diff(first) > 0
    begin[some] = words[first[:-1][some]]
    return begin


def _inner_words(sequences: Sequences, begin: np.ndarray) -> np.ndarray:
    """Where the words begin that may open a B: those of the pieces behind their `begin`."""
    inner = sequences.opens_word.copy()
    inner[sequences.starts[:-1]] = inner[sequences.starts[1:] - 1] = inner[begin] = False
    return np.flatnonzero(inner)


def _cuts(sequences: Sequences, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B) the position of one of the `words` of each piece, at random; its end if it has none.

    That word opens B.
    """
    first = np.searchsorted(words, sequences.starts)
    counts = np.diff(first)
    cut = sequences.starts[1:] - 1
    some = counts > 0
    drawn = first[:-1] + (rng.random(len(counts)) * counts).astype(np.int64)
    cut[some] = words[drawn[some]]
    return cut


def _exchanged(
    sequences: Sequences, whole: np.ndarray, changed: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(B) whose B each sequence gets: those that are `changed` one of another document.

    One alone has no partner: it stays, or another that is not `whole` is taken in. The chosen ones
    are lined up by document, and each takes the B of the one that stands as many places further
    (around the end) as the most frequent document has sequences. That is another document's if none
    has more than half of them; of one that has, only so many take part.
    """
    if sequences.documents is None:
        raise ConfigError("next-sentence pairs need to know which document each sequence is from")
    owner = np.arange(len(sequences.starts) - 1)
    chosen = rng.permutation(np.flatnonzero(changed))
    if len(chosen) == 1 and rng.random() < 0.5:
        others = np.flatnonzero(~whole & ~changed)
        chosen = np.append(chosen, rng.permutation(others)[:1])
    _, document, counts = np.unique(
        sequences.documents[chosen], return_inverse=True, return_counts=True
    )
    too_many = max(0, 2 * int(counts.max(initial=0)) - len(chosen))
    if too_many:
        left_out = np.flatnonzero(document == counts.argmax())[:too_many]
        chosen, document = np.delete(chosen, left_out), np.delete(document, left_out)
    line = np.argsort(rng.permutation(len(counts))[document], kind="stable")
    shift = int(np.bincount(document).max(initial=0))
    owner[chosen[line]] = chosen[np.roll(line, -shift)]
    return owner


def _last_words(
    sequences: Sequences, words: np.ndarray, begin: np.ndarray, cut: np.ndarray, owner: np.ndarray
) -> np.ndarray:
    """(B) the first word of each owner's piece from which on it fits behind the sequence's own A;
    behind the end of that piece where none does.

    Args:
        sequences: the pieces.
        words: where a B may begin.
        begin: (B) where each piece begins with a word.
        cut: (B) where its A ends.
        owner: (B) whose B it gets.
    """
    first, end = sequences.starts[:-1] + 1, sequences.starts[1:] - 1
    room = (end - first) - (cut - begin)
    place = np.searchsorted(words, np.maximum(begin[owner], end[owner] - room))
    return np.append(words, np.iinfo(np.int64).max)[place]
