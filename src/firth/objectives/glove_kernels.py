"""Compiled loops of GloVe: counting which words stand together, and fitting the logarithms.

A pair of words is kept once, the smaller id first; what is learned from it is learned both ways.
Threads and generators are as in `word_context_kernels`.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from firth.objectives.word_context_kernels import FAST

_compiled = njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")


@_compiled
def pair_keys(tokens: Any, starts: Any, known: Any, window: int, vocab_size: int, keys: Any) -> int:
    """All pairs of words within a window, as numbers that sort by pair and then by distance.

    Args:
        tokens: (n) int32 ids.
        starts: (pieces + 1) int64; no window reaches beyond a piece.
        known: (V) bool: the others are left out, before distances are counted.
        window: farthest distance.
        vocab_size: V.
        keys: (n window) int64, filled with (i V + j) window + distance - 1, i <= j.

    Returns:
        The number of keys.
    """
    kept = np.empty(len(tokens), np.int64)
    filled = 0
    for piece in range(len(starts) - 1):
        count = 0
        for t in range(starts[piece], starts[piece + 1]):
            if known[tokens[t]]:
                kept[count] = tokens[t]
                count += 1
        for right in range(count):
            for distance in range(1, min(window, right) + 1):
                a, b = kept[right - distance], kept[right]
                pair = min(a, b) * vocab_size + max(a, b)
                keys[filled] = pair * window + distance - 1
                filled += 1
    return filled


@_compiled
def add_up_keys(keys: Any, window: int, pairs: Any, counts: Any) -> int:
    """Sorted keys to distinct pairs and X = sum of 1 / distance; returns their number."""
    last, found = np.int64(-1), 0
    for key in keys:
        pair, distance = key // window, key % window + 1
        if pair != last:
            pairs[found], counts[found] = pair, 0.0
            found, last = found + 1, pair
        counts[found - 1] += 1.0 / distance
    return found


@_compiled
def merge_pairs(
    pairs: Any, counts: Any, more: Any, more_counts: Any, merged: Any, merged_counts: Any
) -> int:
    """Two sorted lists of pairs as one, the counts of common ones added; returns its length."""
    i, j, found = 0, 0, 0
    while i < len(pairs) or j < len(more):
        if j == len(more) or (i < len(pairs) and pairs[i] < more[j]):
            merged[found], merged_counts[found] = pairs[i], counts[i]
            i += 1
        elif i == len(pairs) or more[j] < pairs[i]:
            merged[found], merged_counts[found] = more[j], more_counts[j]
            j += 1
        else:
            merged[found], merged_counts[found] = pairs[i], counts[i] + more_counts[j]
            i, j = i + 1, j + 1
        found += 1
    return found


@_compiled
def glove(
    first: Any,
    second: Any,
    counts: Any,
    weights: Any,
    squares: Any,
    biases: Any,
    bias_squares: Any,
    x_max: Any,
    alpha: Any,
    lr: Any,
) -> float:
    """One pass over pairs, a step of AdaGrad for each of the two cells X_ij = X_ji.

    Args:
        first: (P) int32, i.
        second: (P) int32, j.
        counts: (P) float32, X_ij.
        weights: (2, V, D) float32, w and w~.
        squares: (2, V, D) float32, 1 plus the sums of the squares of what `weights` were moved by,
            before it was divided.
        biases: (2, V) float32, b and b~.
        bias_squares: (2, V) float32.
        x_max: where a pair has its full weight.
        alpha: power of the weight below that.
        lr: of AdaGrad; with 0 nothing is learned.

    Returns:
        The sum of f(X) (w.w~ + b + b~ - log X)^2 over the cells, each before its step.
    """
    total = 0.0
    for p in range(len(first)):
        x = counts[p]
        share = np.float32(1.0) if x >= x_max else np.float32(math.pow(x / x_max, alpha))
        goal = np.float32(math.log(x))
        for way in range(1 if first[p] == second[p] else 2):
            i, j = (first[p], second[p]) if way == 0 else (second[p], first[p])
            score = np.float32(0.0)
            for d in range(weights.shape[2]):
                score += weights[0, i, d] * weights[1, j, d]
            gap = score + biases[0, i] + biases[1, j] - goal
            total += share * gap * gap
            step = lr * share * gap
            learn_pair(weights, squares, i, j, step)
            for side in range(2):
                word = i if side == 0 else j
                biases[side, word] -= step / np.sqrt(bias_squares[side, word])
                bias_squares[side, word] += step * step
    return total


@_compiled
def learn_pair(weights: Any, squares: Any, i: int, j: int, step: Any) -> None:
    """AdaGrad on w_i and w~_j as in the program: what is squared has the learning rate in it."""
    for d in range(weights.shape[2]):
        w, v = weights[0, i, d], weights[1, j, d]
        of_w, of_v = step * v, step * w
        weights[0, i, d] = w - of_w / np.sqrt(squares[0, i, d])
        weights[1, j, d] = v - of_v / np.sqrt(squares[1, j, d])
        squares[0, i, d] += of_w * of_w
        squares[1, j, d] += of_v * of_v
