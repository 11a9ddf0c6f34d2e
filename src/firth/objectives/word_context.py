"""Word vectors from the words nearby: skip-gram and CBOW with negative sampling, GloVe.

They are not learned by the loop that trains networks, but by compiled loops over the text
(`word_context_kernels`, `glove_kernels`; run by `firth.training.word_vectors`). What stands here
is the mathematics: hyper-parameters, which words are kept and drawn, and the losses of skip-gram
and CBOW as PyTorch computes them, against which the loops are tested.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from firth.errors import ConfigError, UnsupportedError
from firth.protocols import ABSENT, Batch, Loss, Sequences


@dataclass(frozen=True, kw_only=True)
class SkipGram:
    r"""Skip-gram with negative sampling (Mikolov et al. 2013b, eq. 4), to be made small.

    For a word w, a word c near it and K negatives n drawn from P(n), with input vectors v and
    output vectors u:

    $-\log\sigma(u_w \cdot v_c) - \sum_{k=1}^{K} \log\sigma(-u_{n_k} \cdot v_c)$

    as in the program word2vec, where the neighbour has the input vector; over a text that is the
    paper's sum in another order. With buckets of n-grams in the model, v is the mean of the rows
    of a word and its n-grams (Bojanowski et al. 2017, eq. 2, as in the program fastText).

    Each word draws how far its window reaches, 1 to `window` (2013a, section 3.2). A word of
    relative frequency f is kept with probability sqrt(t/f) + t/f, the program's form of eq. 5.
    Both vectors of a word that is not in the vocabulary are missing: the text closes over it.

    Departures: the neighbours of a word share its negatives (Ji et al. 2016), which needs fewer
    rows of memory; a negative that is the word itself is left out, not drawn anew, as in the
    program. A word's rows move once it has left the window, not after each pair.
    """

    window: int = 5
    """Words on either side, at most."""
    negatives: int = 5
    """K, for each word."""
    subsample: float = 1e-3
    """t; 0 keeps every word."""
    power: float = 0.75
    """P(n) is in proportion to the frequency to this power (fastText: 0.5)."""
    lr: float = 0.025
    """At the start; it falls linearly to a ten-thousandth of that."""

    predicts: ClassVar[str] = "of a word's neighbours"
    models: ClassVar[tuple[str, ...]] = ("StaticConfig",)
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_window(self)

    def for_validation(self) -> "SkipGram":
        """The same objective."""
        return self

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """A prediction for every pair of a word and a neighbour.

        `predict_at` (M) are the neighbours; `targets` (M, K+1) are the word and its negatives,
        `ABSENT` in place of a negative that is the word itself.
        """
        return word_pairs(self, sequences, rng, one_each=True)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """The equation above, added up over the pairs."""
        assert batch.predict_at is not None
        hidden = model(batch).last[batch.predict_at]  # (M, D)
        return negative_sampling(model, hidden, batch)


@dataclass(frozen=True, kw_only=True)
class CBOW:
    r"""Continuous bag of words (Mikolov et al. 2013a, section 3.1) with negative sampling.

    $-\log\sigma(u_w \cdot h) - \sum_k \log\sigma(-u_{n_k} \cdot h)$, where h is the mean of the
    input vectors of the words near w. Window, subsampling and negatives as in `SkipGram`.

    Departure of the program, kept: the error at h goes to each neighbour whole, not divided by
    their number (Irsoy et al. 2021 call it a mistake; it acts as a larger learning rate).
    """

    window: int = 5
    """Words on either side, at most."""
    negatives: int = 5
    """For each word."""
    subsample: float = 1e-3
    """As in `SkipGram`; 0 keeps every word."""
    power: float = 0.75
    """Of the negatives' frequencies."""
    lr: float = 0.05
    """At the start; it falls as in `SkipGram`."""

    predicts: ClassVar[str] = "of a word from its neighbours"
    models: ClassVar[tuple[str, ...]] = ("StaticConfig",)
    spare: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_window(self)

    def for_validation(self) -> "CBOW":
        """The same objective."""
        return self

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """A prediction for every word, at its own place; as `SkipGram.prepare` otherwise.

        `boundaries` (M, 3): first and last place of the window, and the word's place in it.
        """
        return word_pairs(self, sequences, rng, one_each=False)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """The equation above, added up over the words."""
        assert batch.boundaries is not None
        assert batch.predict_at is not None
        states = model(batch).last
        sums = F.pad(states.cumsum(0), (0, 0, 1, 0))  # (N+1, D)
        first, last = batch.boundaries[:, 0], batch.boundaries[:, 1]
        around = sums[last + 1] - sums[first] - states[batch.predict_at]  # (M, D)
        return negative_sampling(model, around / (last - first)[:, None], batch)


@dataclass(frozen=True, kw_only=True)
class GloVe:
    r"""Global vectors (Pennington et al. 2014, eq. 8 and 9).

    $\sum_{ij} f(X_{ij}) (w_i \cdot \tilde w_j + b_i + \tilde b_j - \log X_{ij})^2$ with
    $f(x) = \min(1, (x / x_{max})^\alpha)$. X counts how often j stands within `window` words of i,
    on either side, a pair at distance d as 1/d (section 4.2). The vector of a word is
    $w + \tilde w$. AdaGrad with a learning rate of 0.05, over the non-zero cells (section 4.2).

    Departures: all cells of one pair of words are learned one after the other; the order of the
    pairs is drawn once, and that of stretches of them anew in each pass (the program draws the
    order once); windows end with a document, and with pieces of `data.max_length` tokens of a
    longer one. float32 instead of float64.
    """

    window: int = 10
    """Words on either side."""
    x_max: float = 100.0
    """Counts from here on weigh 1."""
    alpha: float = 0.75
    """How fast the weights of smaller counts fall."""
    lr: float = 0.05
    """Of AdaGrad."""

    predicts: ClassVar[str] = "of co-occurrences"
    models: ClassVar[tuple[str, ...]] = ("StaticConfig",)
    spare: ClassVar[int] = 0

    def __post_init__(self) -> None:
        positive = 0 < self.x_max < math.inf and 0 < self.lr < math.inf
        if self.window < 1 or not positive or not 0 <= self.alpha < math.inf:
            raise ConfigError(
                f"GloVe: window {self.window}, x_max {self.x_max}, lr {self.lr}, alpha "
                f"{self.alpha}; expected window >= 1, x_max > 0, lr > 0 and alpha >= 0"
            )

    def for_validation(self) -> "GloVe":
        """The same objective."""
        return self

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """Never: counts of the whole text are learned, not batches of it."""
        raise UnsupportedError("GloVe learns from counts over a whole text, not from batches")

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Never; see `prepare`."""
        raise UnsupportedError("GloVe learns from counts over a whole text, not from batches")


WordContext = SkipGram | CBOW | GloVe


def check_window(objective: SkipGram | CBOW) -> None:
    """Refuses hyper-parameters that mean nothing.

    Raises:
        ConfigError: naming them.
    """
    if objective.window < 1 or objective.negatives < 1 or not 0 < objective.lr < math.inf:
        raise ConfigError(
            f"{type(objective).__name__}: window {objective.window}, negatives "
            f"{objective.negatives}, lr {objective.lr}; expected at least 1, at least 1, and more "
            "than 0"
        )
    if not 0 <= objective.power < math.inf:
        raise ConfigError(
            f"{type(objective).__name__}.power is {objective.power}, expected 0 (all words alike) "
            "or more, such as 0.75"
        )
    if not objective.subsample >= 0:
        raise ConfigError(
            f"{type(objective).__name__}.subsample is {objective.subsample}, expected 0 (keep all) "
            "or a relative frequency such as 0.001"
        )


def keep_probabilities(counts: np.ndarray, subsample: float) -> np.ndarray:
    """How likely each word is kept: min(1, sqrt(t/f) + t/f), f its share of all words.

    Args:
        counts: (V) how often each word occurs; 0 for what is no word.
        subsample: t; 0 keeps all words.

    Returns:
        (V) float32; 0 where the count is 0.
    """
    if subsample == 0:
        return (counts > 0).astype(np.float32)
    ratio = np.divide(subsample * counts.sum(), counts, out=np.zeros(len(counts)), where=counts > 0)
    return np.minimum(1.0, np.sqrt(ratio) + ratio).astype(np.float32)


def alias_table(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The alias table (Walker 1977; Vose 1991) of a distribution.

    A uniformly drawn column c stands for itself with probability odds[c], else for alias[c].

    Args:
        shares: (V) in proportion to the probabilities.

    Returns:
        odds (V) float32 and alias (V) int32.
    """
    scaled = shares * (len(shares) / shares.sum())
    odds, alias = np.ones(len(shares)), np.arange(len(shares), dtype=np.int32)
    small = np.flatnonzero(scaled < 1).tolist()
    large = np.flatnonzero(scaled >= 1).tolist()
    rest = scaled.tolist()
    while small and large:
        low, high = small.pop(), large.pop()
        odds[low], alias[low] = rest[low], high
        rest[high] -= 1 - rest[low]
        (small if rest[high] < 1 else large).append(high)
    return odds.astype(np.float32), alias


def word_pairs(
    objective: SkipGram | CBOW, sequences: Sequences, rng: np.random.Generator, *, one_each: bool
) -> Batch:
    """Predictions of words from their neighbours, in PyTorch's terms.

    Negatives are drawn by the frequencies within the batch, and no word is left out.

    Args:
        objective: window, negatives and power.
        sequences: the text.
        rng: draws.
        one_each: a prediction for each neighbour, rather than one for all of a word.
    """
    special = np.isin(sequences.ids, sequences.vocabulary.special)
    counts = np.bincount(sequences.ids[~special], minlength=sequences.vocabulary.size)
    shares = counts**objective.power * (counts > 0)
    places, targets, bounds = [], [], []
    for begin, end in zip(sequences.starts[:-1], sequences.starts[1:], strict=True):
        inner = np.flatnonzero(~special[begin:end]) + begin
        for i, place in enumerate(inner.tolist()):
            reach = int(rng.integers(1, objective.window + 1))
            around = inner[max(0, i - reach) : i + reach + 1]
            near = around[around != place]
            drawn = rng.choice(len(shares), objective.negatives, p=shares / shares.sum())
            drawn[drawn == sequences.ids[place]] = ABSENT
            row = np.concatenate([sequences.ids[place : place + 1], drawn])
            chosen = near if one_each else near[:1] * 0 + place
            places.append(chosen)
            targets.append(np.tile(row, (len(chosen), 1)))
            bounds.append(np.tile([around[0], around[-1], place - around[0]], (len(chosen), 1)))
    return Batch(
        input_ids=torch.from_numpy(sequences.ids),
        starts=torch.from_numpy(sequences.starts),
        predict_at=torch.from_numpy(np.concatenate(places)),
        targets=torch.from_numpy(np.concatenate(targets)),
        boundaries=torch.from_numpy(np.concatenate(bounds)),
    )


def negative_sampling(model: Any, hidden: Tensor, batch: Batch) -> Loss:
    """The summed loss of (M, D) inputs for (M, K+1) targets, the first of which is the word."""
    targets = batch.targets
    assert targets is not None
    there = targets != ABSENT
    rows = model.outputs.weight[targets.clamp(min=0)]  # (M, K+1, D)
    scores = torch.einsum("mkd,md->mk", rows, hidden)
    signs = torch.ones_like(scores)
    signs[:, 0] = -1.0
    losses = F.softplus(signs * scores) * there
    return Loss(losses.sum(), len(targets))
