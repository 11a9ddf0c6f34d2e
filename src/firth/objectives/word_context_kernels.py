"""Compiled loops that train word vectors: skip-gram, CBOW, GloVe.

Each takes a stretch of tokens and changes the weights in place. They release Python's global lock,
so several threads may train the same weights at once, without locks, as the programs word2vec,
fastText and GloVe do (Recht et al. 2011, "Hogwild"). One thread alone gives the same numbers again.

A stretch has a random number generator of its own, whose state is `seed`: what is drawn for it
does not depend on what was trained before.

Shapes: n tokens of a stretch, V words, I input rows (V and buckets of n-grams), D.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

SIGMOID_RANGE = 8.0
SIGMOID_STEPS = 1024
SIGMOID_TABLE = 1.0 / (1.0 + np.exp(-np.linspace(-8.0, 8.0, SIGMOID_STEPS + 1))).astype(np.float32)
"""Values of the logistic function, read with linear interpolation: exact to 4e-6 up to 8, beyond
which the value at 8 is taken (0.9997)."""

FAST = {"reassoc", "contract", "nsz", "arcp"}
_compiled: Any = njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
_inlined: Any = njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", inline="always")


def _prefetch(_context: Any, array: Any, row: Any, column: Any) -> Any:
    """Asks for the cache line of array[row, column], which will be read and written soon.

    The rows of words are spread over more memory than a cache holds, and waiting for them took
    most of the time.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        view = context.make_array(kind)(context, builder, arguments[0])
        places = [
            context.cast(builder, value, of, types.intp)
            for value, of in zip(arguments[1:], signature.args[1:], strict=True)
        ]
        place = cgutils.get_item_pointer(context, builder, kind, view, places, wraparound=False)
        pointer = builder.bitcast(place, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer.type],
            ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number]),
        )
        builder.call(function, [pointer, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, row, column), generate


prefetch: Any = intrinsic(_prefetch)


@_inlined
def next_random(state: Any) -> Any:
    """The next 64 random bits of a generator (xorshift, Marsaglia 2003); `state` (1) uint64."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return x


@_inlined
def uniform(bits: Any) -> Any:
    """A float32 in [0, 1) from the lowest 24 bits."""
    return np.float32(np.int64(bits & np.uint64(0xFFFFFF))) * np.float32(2.0**-24)


@_inlined
def draw(odds: Any, alias: Any, state: Any) -> Any:
    """A word by its probability, in constant time (the alias method of Walker 1977)."""
    bits = next_random(state)
    column = np.int64(((bits >> np.uint64(32)) * np.uint64(len(odds))) >> np.uint64(32))
    return column if uniform(bits) < odds[column] else np.int64(alias[column])


@_inlined
def sigmoid(x: Any, table: Any) -> Any:
    """The logistic function from its table."""
    place = (x + np.float32(8.0)) * np.float32(64.0)
    place = min(max(place, np.float32(0.0)), np.float32(1023.99))
    below = np.int64(place)
    return table[below] + (place - np.float32(below)) * (table[below + 1] - table[below])


@_compiled
def keep_some(tokens: Any, keep: Any, state: Any, kept: Any) -> int:
    """Subsampling: the tokens that are kept, into `kept`; returns their number."""
    count = 0
    for i in range(len(tokens)):
        word = np.int64(tokens[i])
        if uniform(next_random(state)) < keep[word]:
            kept[count] = word
            count += 1
    return count


@_compiled
def draw_targets(center: int, odds: Any, alias: Any, state: Any, targets: Any) -> int:
    """The word itself and the negatives that are not it, into `targets`; returns their number."""
    targets[0] = center
    count = 1
    for _ in range(len(targets) - 1):
        word = draw(odds, alias, state)
        if word != center:
            targets[count] = word
            count += 1
    return count


@_compiled
def score_targets(hidden: Any, outputs: Any, targets: Any, scores: Any) -> None:
    """h.o of each target, into `scores`; three at a time, so that their sums overlap."""
    done, count = 0, len(targets)
    while done + 3 <= count:
        first, second, third = targets[done], targets[done + 1], targets[done + 2]
        a, b, c = np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for d in range(len(hidden)):
            a += hidden[d] * outputs[first, d]
            b += hidden[d] * outputs[second, d]
            c += hidden[d] * outputs[third, d]
        scores[done], scores[done + 1], scores[done + 2] = a, b, c
        done += 3
    for k in range(done, count):
        a = np.float32(0.0)
        for d in range(len(hidden)):
            a += hidden[d] * outputs[targets[k], d]
        scores[k] = a


@_compiled
def learn_targets(
    hidden: Any, outputs: Any, targets: Any, lr: Any, table: Any, error: Any, steps: Any
) -> None:
    """A gradient step on the outputs of one positive and its negatives; their `error` (D) at h.

    For h = `hidden` and the output o of each target, with label 1 for the first and 0 for others:
    g = lr (label - sigmoid(h.o)), error += g o, o += g h. `steps` holds g in passing.
    """
    count = len(targets)
    error[:] = np.float32(0.0)
    score_targets(hidden, outputs, targets, steps)
    for k in range(count):
        label = np.float32(1.0) if k == 0 else np.float32(0.0)
        steps[k] = lr * (label - sigmoid(steps[k], table))
    for k in range(0, count - 1, 2):
        first, second, g, h = targets[k], targets[k + 1], steps[k], steps[k + 1]
        for d in range(len(hidden)):
            a = outputs[first, d]
            outputs[first, d] = a + g * hidden[d]
            b = outputs[second, d]
            outputs[second, d] = b + h * hidden[d]
            error[d] += g * a + h * b
    if count % 2:
        last, g = targets[count - 1], steps[count - 1]
        for d in range(len(hidden)):
            a = outputs[last, d]
            outputs[last, d] = a + g * hidden[d]
            error[d] += g * a


@_compiled
def loss_of(hidden: Any, outputs: Any, targets: Any) -> float:
    """-log sigmoid(h.o) of the first target, -log sigmoid(-h.o) of the others, in nats."""
    total = 0.0
    for k in range(len(targets)):
        score = 0.0
        for d in range(len(hidden)):
            score += hidden[d] * outputs[targets[k], d]
        score = -score if k == 0 else score
        total += max(score, 0.0) + math.log1p(math.exp(-abs(score)))
    return total


@_compiled
def workspace(places: int, size: int, negatives: int) -> tuple[Any, Any, Any, Any]:
    """Room for the ring of vectors, for their moves, for a word's error, and for K + 1 steps."""
    shape = (places, size)
    return (
        np.empty(shape, np.float32),
        np.empty(shape, np.float32),
        np.empty(size, np.float32),
        np.empty(negatives + 1, np.float32),
    )


@_compiled
def skip_gram(
    tokens: Any,
    starts: Any,
    inputs: Any,
    outputs: Any,
    row_starts: Any,
    rows: Any,
    sampling: Any,
    how: Any,
) -> tuple[float, int]:
    """Skip-gram: each word near a word has a vector from which that word is predicted.

    The vectors of the words within reach are held in a ring of 2 window + 1 places. A word enters
    it as the mean of its input rows, moves there, and when it leaves, its rows move as it did.

    Args:
        tokens: (n) int32 ids.
        starts: (pieces + 1) int64; no window reaches beyond a piece.
        inputs: (I, D) float32.
        outputs: (V, D) float32.
        row_starts: (V + 1) int64.
        rows: int32; word v has the input rows rows[row_starts[v]:row_starts[v + 1]].
        sampling: four arrays: keep (V) float32, how likely a word is kept; odds (V) float32 and
            alias (V) int32, the alias table of the negatives; `SIGMOID_TABLE`.
        how: five numbers: window, the widest reach to each side, of which each word draws its own;
            negatives of each word, which all that are near it share; the learning rate, float32,
            with 0 nothing is learned; the seed of this stretch; the loss is added up at every
            so-many-th word.

    Returns:
        The sum of the losses, and of how many predictions.
    """
    keep, odds, alias, table = sampling
    window, negatives, lr, seed, report = how
    places, state = 2 * window + 1, np.full(1, seed, np.uint64)
    kept, num_targets = np.empty(len(tokens), np.int64), np.zeros(2, np.int64)
    targets = np.empty((2, negatives + 1), np.int64)
    ring, moves, error, steps = workspace(places, inputs.shape[1], negatives)
    total, predictions, words = 0.0, 0, 0
    for piece in range(len(starts) - 1):
        count = keep_some(tokens[starts[piece] : starts[piece + 1]], keep, state, kept)
        for step in range(count + 2 * window if count > 1 else 0):
            if step + 2 < count:
                fetch_rows(inputs, rows, row_starts, kept[step + 2])
            if step < count:
                enter(inputs, rows, row_starts, kept[step], ring[step % places])
                moves[step % places] = np.float32(0.0)
            i = step - window
            if -1 <= i < count - 1:
                ahead = (i + 1) % 2
                num_targets[ahead] = draw_targets(kept[i + 1], odds, alias, state, targets[ahead])
                fetch_targets(outputs, targets[ahead], num_targets[ahead])
            if 0 <= i < count:
                reach = 1 + np.int64((next_random(state) >> np.uint64(33)) % np.uint64(window))
                words += 1
                for j in range(max(0, i - reach), min(count, i + reach + 1)):
                    if j != i:
                        vector, these = ring[j % places], targets[i % 2, : num_targets[i % 2]]
                        if words % report == 0:
                            total += loss_of(vector, outputs, these)
                            predictions += 1
                        learn_targets(vector, outputs, these, lr, table, error, steps)
                        move(vector, moves[j % places], error)
            if 0 <= i - window < count:
                leave(inputs, rows, row_starts, kept[i - window], moves[(i - window) % places])
    return total, predictions


@_compiled
def move(vector: Any, moved: Any, error: Any) -> None:
    """Moves a vector by `error` (D), and adds that to what it has moved."""
    for d in range(len(error)):
        vector[d] += error[d]
        moved[d] += error[d]


@_compiled
def enter(inputs: Any, rows: Any, row_starts: Any, word: int, vector: Any) -> None:
    """The mean of a word's input rows, into `vector` (D)."""
    first, last = row_starts[word], row_starts[word + 1]
    vector[:] = np.float32(0.0)
    for r in range(first, last):
        for d in range(len(vector)):
            vector[d] += inputs[rows[r], d]
    share = np.float32(1.0) / np.float32(max(1, last - first))
    for d in range(len(vector)):
        vector[d] *= share


@_compiled
def leave(inputs: Any, rows: Any, row_starts: Any, word: int, move: Any) -> None:
    """Moves each of a word's input rows by `move` (D)."""
    for r in range(row_starts[word], row_starts[word + 1]):
        for d in range(len(move)):
            inputs[rows[r], d] += move[d]


@_compiled
def fetch_rows(inputs: Any, rows: Any, row_starts: Any, word: int) -> None:
    """Asks for the input rows of a word that will soon enter."""
    for r in range(row_starts[word], row_starts[word + 1]):
        for d in range(0, inputs.shape[1], 16):
            prefetch(inputs, rows[r], d)


@_compiled
def fetch_targets(outputs: Any, targets: Any, count: int) -> None:
    """Asks for the outputs of the next word's targets."""
    for k in range(count):
        for d in range(0, outputs.shape[1], 16):
            prefetch(outputs, targets[k], d)


@_compiled
def cbow(
    tokens: Any, starts: Any, inputs: Any, outputs: Any, sampling: Any, how: Any
) -> tuple[float, int]:
    """CBOW: a word is predicted from the mean of its neighbours' vectors; see `skip_gram`.

    As in the program, each neighbour moves by the whole error, not by its share of the mean.
    """
    keep, odds, alias, table = sampling
    window, negatives, lr, seed, report = how
    size = inputs.shape[1]
    state, kept = np.full(1, seed, np.uint64), np.empty(len(tokens), np.int64)
    targets, num_targets = np.empty((2, negatives + 1), np.int64), np.zeros(2, np.int64)
    hidden, error = np.empty(size, np.float32), np.empty(size, np.float32)
    steps = np.empty(negatives + 1, np.float32)
    total, predictions, words = 0.0, 0, 0
    for piece in range(len(starts) - 1):
        count = keep_some(tokens[starts[piece] : starts[piece + 1]], keep, state, kept)
        for i in range(-1, count if count > 1 else 0):
            if i + 1 < count:
                ahead = (i + 1) % 2
                num_targets[ahead] = draw_targets(kept[i + 1], odds, alias, state, targets[ahead])
                fetch_targets(outputs, targets[ahead], num_targets[ahead])
            if i < 0:
                continue
            reach = 1 + np.int64((next_random(state) >> np.uint64(33)) % np.uint64(window))
            first, last = max(0, i - reach), min(count, i + reach + 1)
            mean_around(inputs, kept, first, last, i, hidden)
            these = targets[i % 2, : num_targets[i % 2]]
            words += 1
            if words % report == 0:
                total += loss_of(hidden, outputs, these)
                predictions += 1
            learn_targets(hidden, outputs, these, lr, table, error, steps)
            for j in range(first, last):
                if j != i:
                    for d in range(size):
                        inputs[kept[j], d] += error[d]
    return total, predictions


@_compiled
def mean_around(inputs: Any, kept: Any, first: int, last: int, i: int, mean: Any) -> None:
    """The mean of the input rows of the words from `first` up to `last`, but for word i's."""
    mean[:] = np.float32(0.0)
    for j in range(first, last):
        if j != i:
            for d in range(len(mean)):
                mean[d] += inputs[kept[j], d]
    share = np.float32(1.0) / np.float32(last - first - 1)
    for d in range(len(mean)):
        mean[d] *= share


@_compiled
def compose(inputs: Any, rows: Any, row_starts: Any, vectors: Any) -> None:
    """The finished vector of each word, the mean of its input rows, into `vectors` (V, D)."""
    for word in range(len(row_starts) - 1):
        enter(inputs, rows, row_starts, word, vectors[word])
