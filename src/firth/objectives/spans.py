"""Spans of whole words: how long they are, where they lie, and what stands on either side."""

import numpy as np

from firth.protocols import ABSENT, Sequences

_STOP, _LONGEST = 0.2, 10
"""p and l_max of the lengths of spans (Joshi et al. 2020, section 3.1)."""


def span_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of spans in words: l ~ Geo(p), cut off at l_max (Joshi et al. 2020, section 3.1).

        P(l) = p (1 - p)^(l-1) / (1 - (1 - p)^l_max),  l = 1 ... l_max,  p = 0.2, l_max = 10

    The tail is cut off, not heaped on l_max: so is the published program's (`masking.py`,
    `len_distrib`), and so the mean is the paper's 3.8.

    Returns:
        (count) int64.
    """
    tail = (1 - _STOP) ** _LONGEST
    drawn = np.log1p(-rng.random(count) * (1 - tail)) / np.log(1 - _STOP)
    return np.clip(np.ceil(drawn), 1, _LONGEST).astype(np.int64)


def word_order_by_spans(
    owner: np.ndarray, stretch: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """In which order words are masked when spans of words are drawn one after another.

    Each span begins at a word drawn uniformly from its sequence and goes on for `span_lengths`
    words or to the end of its stretch; spans may overlap (Joshi et al. 2020, section 3.1). Words
    that no span has reached come last, in random order.

    Args:
        owner: (W) sequence of each word, rising.
        stretch: (W) number of each word's stretch of text without special tokens, rising.
        wanted: (B) tokens to mask in each sequence: as many spans are drawn, which is plenty.
        rng: gives the spans.

    Returns:
        (W) float64, smaller for words that are masked earlier; one span's words rise by place.
    """
    num_words = np.bincount(owner, minlength=len(wanted))
    sequence = np.repeat(np.arange(len(wanted)), wanted)  # (S) of each span
    first = (np.cumsum(num_words) - num_words)[sequence]
    begin = first + (rng.random(len(sequence)) * num_words[sequence]).astype(np.int64)
    ends = np.cumsum(np.bincount(stretch)) if len(stretch) else np.zeros(0, np.int64)
    end = np.minimum(begin + span_lengths(len(begin), rng), ends[stretch[begin]])
    word = ranges(begin, end - begin)
    order = len(sequence) + rng.random(len(owner))
    np.minimum.at(order, word, np.repeat(np.arange(len(begin), dtype=float), end - begin))
    return order


def ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """begins[i], begins[i] + 1, ... (lengths[i] numbers) for each i, end to end."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(begins - before, lengths) + np.arange(lengths.sum())


def runs_of(chosen: np.ndarray) -> np.ndarray:
    """(M) the number, from 0, of the run of neighbours that each of M rising positions is in."""
    return np.cumsum(np.diff(chosen, prepend=-2) > 1) - 1


def span_boundaries(sequences: Sequences, chosen: np.ndarray) -> np.ndarray:
    """The tokens on either side of each chosen one's span, and its place in the span.

    A span is a run of chosen neighbours: spans that touch or overlap are one, so a boundary is
    never masked itself (facebookresearch/SpanBERT, `masking.py`, `merge_intervals`). Where a span
    begins or ends the text, a special token stands beside it, and the place is `ABSENT`
    (`span_masking`, external endpoints).

    Args:
        sequences: the uncorrupted ones.
        chosen: (M) rising positions of ordinary tokens.

    Returns:
        (M, 3) int64: before (s - 1), after (e + 1), and place (i - s, from 0).
    """
    run = runs_of(chosen)
    opens = np.diff(run, prepend=-1) > 0
    lengths = np.diff(np.flatnonzero(np.append(opens, True)))
    start = np.repeat(chosen[opens], lengths)
    before, after = start - 1, start + np.repeat(lengths, lengths)
    edges = (sequences.vocabulary.first, sequences.vocabulary.last)
    bare = np.isin(sequences.ids[before], edges) | np.isin(sequences.ids[after], edges)
    return np.stack([before, after, np.where(bare, ABSENT, chosen - start)], axis=1)
