"""Small stand-ins that several test files share."""

from dataclasses import dataclass, replace

import numpy as np

from firth.models import Bert, BertConfig
from firth.models.bert import modern
from firth.protocols import Sequences, Vocabulary

VOCABULARY = Vocabulary(size=60, pad=0, unknown=1, first=2, last=3, mask=4, special=(0, 1, 2, 3, 4))


@dataclass(frozen=True)
class ListSource:
    """Documents of token ids in memory, as `PackedSequences` reads them."""

    documents: list[np.ndarray]

    @property
    def document_starts(self) -> np.ndarray:
        return np.concatenate(([0], np.cumsum([len(d) for d in self.documents], dtype=np.int64)))

    def tokens(self, begin: int, end: int) -> np.ndarray:
        return np.concatenate(self.documents)[begin:end]

    def opens_word(self, begin: int, end: int) -> np.ndarray:
        return np.concatenate(self.documents)[begin:end] % 3 > 0


def random_documents(seed: int, count: int, longest: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 60, rng.integers(1, longest)) for _ in range(count)]


def markov_documents(seed: int, count: int, length: int = 30) -> list[np.ndarray]:
    """Text that can be learned: each token is followed by the next one, with some noise."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        walk = (np.arange(length) + rng.integers(55)) % 55 + 5
        noise = rng.random(length) < 0.05
        walk[noise] = rng.integers(5, 60, int(noise.sum()))
        documents.append(walk)
    return documents


def sequences_of(lengths: list[int], seed: int = 0, opens: np.ndarray | None = None) -> Sequences:
    """Random sequences that begin with [CLS] and end with [SEP]."""
    rng = np.random.default_rng(seed)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    ids = rng.integers(5, VOCABULARY.size, starts[-1])
    ids[starts[:-1]] = VOCABULARY.first
    ids[starts[1:] - 1] = VOCABULARY.last
    if opens is None:
        opens = np.ones(len(ids), dtype=bool)
    return Sequences(ids=ids, starts=starts, opens_word=opens, vocabulary=VOCABULARY)


def tiny_bert(**changes: object) -> Bert:
    settings: dict = {
        "vocab_size": VOCABULARY.size,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 64,
        "max_length": 64,
        "dropout": 0.0,
    }
    return Bert(BertConfig(**{**settings, **changes}), pooler=False)


def tiny_modern_bert(**changes: object) -> Bert:
    config = replace(modern(tiny_bert(num_layers=4).config), local_window=4)
    return Bert(replace(config, **changes), pooler=False)
