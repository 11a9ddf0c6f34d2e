"""Scores of minimal pairs: two sentences that differ in what makes one of them wrong.

    pairs --distinct--> sentences --total log probability--> (P, 2) --good minus bad--> differences

The score of a sentence is the sum over its tokens, without regard to its length: the question is
which of the two the model would rather say.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firth.errors import DataError
from firth.inference.ngrams import KneserNey, corpus_tokens, unigram_log_probabilities
from firth.inference.progress import Progress
from firth.inference.scoring import Method, Score
from firth.protocols import Encoding
from firth.text.languages import JoinedLanguages, has_tokens, open_tokens
from firth.text.shards import Shards
from firth.text.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

CHUNK = 4096
"""Sentences scored at a time: enough to be sorted by length, few enough for the memory."""

ORDER = 5


@dataclass(frozen=True)
class Sentences:
    """The sentences of pairs, those with the same tokens once.

    What a vocabulary cannot tell apart so ties exactly, wherever in a batch it is computed.
    """

    encodings: list[Encoding]
    of_pairs: np.ndarray
    """(P, 2) int64: which encoding is the good and which the bad sentence of each pair."""

    def differences(self, scores: np.ndarray) -> np.ndarray:
        """(P) scores of the good sentences minus those of the bad ones."""
        good, bad = scores[self.of_pairs].T
        # A score of minus infinity may not hide behind a better one, nor two behind a tie.
        finite = np.isfinite(good) & np.isfinite(bad)
        return np.subtract(good, bad, out=np.full(len(good), np.nan), where=finite)

    def ids(self, begin: int, end: int) -> list[np.ndarray]:
        """Ordinary tokens of some of the encodings."""
        return [encoding.ids[encoding.words >= 0] for encoding in self.encodings[begin:end]]


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Sentences:
    """Encodes pairs of a good and a bad sentence.

    Raises:
        DataError: if a sentence has no token: an empty one would be likelier than any other.
    """
    numbers: dict[tuple[bytes, bytes], int] = {}
    encodings: list[Encoding] = []
    of_pairs = []
    for encoding in tokenizer.encode_batch([sentence for pair in pairs for sentence in pair]):
        if not (encoding.words >= 0).any():
            raise DataError(
                f"the sentence {encoding.text!r} has no token in this model's vocabulary; correct "
                "the pair or leave it out"
            )
        number = numbers.setdefault(
            (encoding.ids.tobytes(), encoding.words.tobytes()), len(numbers)
        )
        if number == len(encodings):
            encodings.append(encoding)
        of_pairs.append(number)
    return Sentences(encodings, np.array(of_pairs, np.int64).reshape(-1, 2))


def model_differences(
    sentences: Sentences, score: Callable[[list[str]], list[Score]]
) -> tuple[np.ndarray, Method]:
    """Total log probability of each good sentence minus that of its bad one.

    Args:
        sentences: the pairs.
        score: how a model scores texts.

    Returns:
        (P) float64, in nats, and how the model scores. A score that is no finite number gives NaN.
    """
    found: list[Score] = []
    texts = [encoding.text for encoding in sentences.encodings]
    progress = Progress(len(texts), "sentences scored")
    for begin in range(0, len(texts), CHUNK):
        found.extend(score(texts[begin : begin + CHUNK]))
        progress.add(len(found) - progress.done)
    return sentences.differences(np.array([one.total for one in found])), found[0].method


def training_tokens(run: Path | None, tokenizer: Tokenizer) -> Shards | JoinedLanguages | None:
    """The tokens that a model was trained on; None, with a warning, where they are not at hand."""
    if run is None or not has_tokens(run / "data" / "train"):
        place = run or "a model without a directory"
        logger.warning("no baselines: %s has no data/train whose words could be counted", place)
        return None
    tokens = open_tokens(run / "data" / "train")
    if tokens.tokenizer_hash != tokenizer.content_hash:
        logger.warning("no baselines: the text of %s was cut by another tokenizer", run)
        return None
    return tokens


def baseline_differences(
    sentences: Sentences, shards: Shards | JoinedLanguages, tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """The same for two models that know nothing of grammar, counted in the model's own text.

    "word frequency" adds up the logs of the tokens' relative frequencies, so that sentences of the
    same tokens tie; "5-gram" is an interpolated modified Kneser-Ney model of the tokens.

    Args:
        sentences: the pairs.
        shards: the text that the model was trained on. Of more than `SAMPLE_TOKENS` tokens about so
            many are counted.
        tokenizer: the one that made `shards` and `sentences`.

    Returns:
        (P) float64, in nats, by the name of the baseline.
    """
    vocabulary = tokenizer.vocabulary
    tokens, starts = corpus_tokens(shards)
    logger.info("baselines: counting %s tokens of %s", f"{len(tokens):,}", shards.directory)
    unigram = unigram_log_probabilities(tokens, vocabulary.size)
    ngrams = KneserNey.count(
        tokens, starts, vocab_size=vocabulary.size, first=vocabulary.first, order=ORDER
    )
    frequency, conditional = [], []
    for begin in range(0, len(sentences.encodings), CHUNK):
        # Words that were never seen have ids of their own; in the counts they are the unknown one.
        ids = [
            np.where(one < vocabulary.size, one, vocabulary.unknown)
            for one in sentences.ids(begin, begin + CHUNK)
        ]
        ends = np.cumsum([0, *map(len, ids)])
        logs = ngrams.log_probabilities(np.concatenate(ids), ends)
        # fsum, whose result does not depend on the order: other words order, same sum, a tie.
        frequency += [math.fsum(unigram[one].tolist()) for one in ids]
        conditional += [math.fsum(part.tolist()) for part in np.split(logs, ends[1:-1])]
    return {
        "word frequency": sentences.differences(np.array(frequency)),
        f"{ORDER}-gram": sentences.differences(np.array(conditional)),
    }
