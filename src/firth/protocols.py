"""The architecture on one page: what flows between the rooms, and what each room must offer.

    corpus files --text--> Sequences --objective.prepare--> Batch --model--> Output
    Output --objective.loss--> Loss --training--> a run
    a run + labelled file --task + adaptation--> an adapted model --> Report

Shapes: N tokens in a batch, B sequences, M predicted positions, D hidden size, V vocabulary size,
L layers. Sequences lie end to end and nothing is padded: `starts` (B+1) says where each begins.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from firth.device import moved
from firth.errors import ConfigError

Text = str | Sequence[str]
"""A text as one string, or as the list of the user's own words."""

Unit = Literal["sequence", "word"]
"""What a task is about: a whole text (or pair), or each of its words."""

Context = Literal["both", "left", "right"]
"""Where a model looks when it reads a token: on both sides, before it or behind it."""

ABSENT = -1
"""The id of a special token that a vocabulary does not have."""

OUTSIDE, INSIDE, OPENS = 0, 1, 2
"""Where a token lies with regard to the spans that are marked in a text."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The token ids an objective or a model must know by name."""

    size: int
    pad: int
    """`ABSENT` where there is none, as in GPT-2's vocabulary."""
    unknown: int
    """`ABSENT` where nothing is unknown."""
    first: int
    """The token that opens every sequence: [CLS] or <s>."""
    last: int
    """The token that closes every sequence: [SEP] or </s>."""
    mask: int
    """`ABSENT` where there is none."""
    special: tuple[int, ...]
    """All ids never drawn as a random replacement, nor masked but for the unknown one's."""
    sentinels: tuple[int, ...] = ()
    """The tokens that stand for what was taken out of a text (T5), in their order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """One encoded text, special tokens included (their offsets are (0, 0) and their word is -1)."""

    text: str
    """The text; for a list of words, the words joined by single spaces."""
    ids: np.ndarray
    """(n) int64."""
    tokens: list[str]
    offsets: np.ndarray
    """(n, 2) int64, start and end of each token in `text`, in characters."""
    words: np.ndarray
    """(n) int64: index of each token's word (the user's, or the pre-tokenizer's); -1 if special."""


class Tokenizer(Protocol):
    """Turns text into token ids. `firth.text.tokenizers.Tokenizer` is the implementation."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def encode(self, text: Text, *, special_tokens: bool = True) -> Encoding: ...

    def encode_batch(
        self, texts: Sequence[Text], *, special_tokens: bool = True
    ) -> list[Encoding]: ...

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str: ...

    def token(self, index: int) -> str: ...


class WordList(Protocol):
    """The words behind token ids, for a model that spells them: `firth.text.words.Words`."""

    first: int
    """The id that opens a sequence; what stands there is no word."""
    last: int

    def __len__(self) -> int: ...

    def word(self, index: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Sequences drawn for one step, as an objective sees them (numpy, on the CPU)."""

    ids: np.ndarray
    """(N) int64, special tokens included."""
    starts: np.ndarray
    """(B+1) int64."""
    opens_word: np.ndarray
    """(N) bool: True where a token begins a word."""
    vocabulary: Vocabulary
    ends_document: np.ndarray | None = None
    """(B) bool: False where a sequence is cut off and its document goes on; None: all end."""
    begins_document: np.ndarray | None = None
    """(B) bool: False where a sequence goes on with a document that was cut; None: all begin."""
    documents: np.ndarray | None = None
    """(B) int64: the document of each sequence; None where that is not known."""
    marks: np.ndarray | None = None
    """(N) uint8 of each token: `OUTSIDE` a span that matters, `INSIDE` it, or `OPENS` it."""
    progress: float = 0.0
    """Share of training done, 0 to 1, for schedules."""
    source: "Sequences | None" = None
    """Of pairs: the B sequences that these are made from, in the same order."""
    beyond: np.ndarray | None = None
    """(B) int64, of streams: the token that follows each sequence in the direction of reading."""
    continues: bool | None = None
    """Of streams: whether they go on where those of the step before ended."""
    rate: float = 1.0
    """What the learning rate of the step is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`N` tokens of `B` sequences, end to end; what lays them out stays on the CPU."""

    input_ids: Tensor
    """(N) int64."""
    starts: Tensor
    """(B+1) int64 on the CPU: sequence b is input_ids[starts[b]:starts[b+1]]."""
    segments: Tensor | None = None
    """(N) int64: 0 for the first sentence, 1 for the second."""
    prefix: Tensor | None = None
    """(B) int64 on the CPU: tokens at the head of each sequence that a decoder lets all tokens see;
    None for the decoder's own way, which is causal unless it was trained to see both sides."""
    predict_at: Tensor | None = None
    """(M) int64, positions in 0..N-1."""
    targets: Tensor | None = None
    """(M) token ids at `predict_at`; for a task one label (row) a sequence, or one a word."""
    weights: Tensor | None = None
    """(M) float32 of each prediction in the loss, 1 on average; None where all count alike."""
    boundaries: Tensor | None = None
    """(M, 3) int64: of each token in a span the positions before and after it, and its place."""
    sequence_targets: Tensor | None = None
    """(B) int64: a label a sequence, beside the tokens that are predicted (sentence pairs)."""
    sequence_weights: Tensor | None = None
    """(B) float32: how many predictions the label of each sequence counts for in the sum."""
    source: "Batch | None" = None
    """The B sequences that an encoder reads while a decoder reads these."""
    continues: bool | None = None
    """Of streams: whether they go on where those of the step before ended."""
    rate: float = 1.0
    """What the learning rate of the step is multiplied by."""
    words: Tensor | None = None
    """(M, 2) int64, of words: the first token of each and the one after its last; equal if none."""
    word_starts: Tensor | None = None
    """(T+1) int64 on the CPU: text t is words word_starts[t]:word_starts[t+1], of one sequence or
    (longer than the window) of several, one after another."""

    @property
    def num_sequences(self) -> int:
        return self.starts.numel() - 1

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def num_predictions(self) -> int:
        return 0 if self.targets is None else self.targets.shape[0]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`, but for those that lay it out."""
        if device.type == "cpu":
            return self
        tensors = {
            f.name: value.to(device) if isinstance(value, Batch) else moved(value, device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), (Tensor, Batch))
            and f.name not in _LAYING_OUT
        }
        return replace(self, **tensors)

    def split(self, parts: int) -> list["Batch"]:
        """Cuts the batch between sequences into `parts` batches of about equal token counts.

        Micro-batches and ranks take these parts: together they are this batch, whatever `parts`.
        """
        if parts == 1:
            return [self]
        if self.continues is not None:
            raise ConfigError(
                "streams carry their state from step to step, so a batch of them cannot be cut; "
                "set training.accumulation to 1 and train in one process"
            )
        if self.words is not None:
            raise ConfigError(
                "a batch of words is not cut into parts, since the sequences of a long text belong "
                "together; set accumulation to 1 and use one process"
            )
        if self.num_sequences < parts:
            raise ConfigError(
                f"a batch of {self.num_sequences} sequences cannot be cut into {parts} parts; "
                "raise batch_tokens or lower accumulation (or the number of processes)"
            )
        goals = torch.arange(1, parts) * self.num_tokens / parts
        inner = torch.searchsorted(self.starts.double(), goals.double())
        cuts = [0, *inner.tolist(), self.num_sequences]
        for i in range(1, parts):  # at least one sequence each
            cuts[i] = min(max(cuts[i], cuts[i - 1] + 1), self.num_sequences - parts + i)
        return [self._slice(a, b) for a, b in pairwise(cuts)]

    def _slice(self, first: int, last: int) -> "Batch":
        begin, end = int(self.starts[first]), int(self.starts[last])
        at, targets = self.predict_at, self.targets
        weights, boundaries = self.weights, self.boundaries
        if at is not None:
            chosen = (at >= begin) & (at < end)
            at, targets = at[chosen] - begin, None if targets is None else targets[chosen]
            weights = None if weights is None else weights[chosen]
            if boundaries is not None:
                boundaries = boundaries[chosen] - torch.tensor([begin, begin, 0])
        elif targets is not None:
            targets = targets[first:last]
        labels, shares = self.sequence_targets, self.sequence_weights
        return Batch(
            input_ids=self.input_ids[begin:end],
            starts=self.starts[first : last + 1] - begin,
            segments=None if self.segments is None else self.segments[begin:end],
            prefix=None if self.prefix is None else self.prefix[first:last],
            predict_at=at,
            targets=targets,
            weights=weights,
            boundaries=boundaries,
            sequence_targets=None if labels is None else labels[first:last],
            sequence_weights=None if shares is None else shares[first:last],
            source=None if self.source is None else self.source._slice(first, last),
        )


_LAYING_OUT = ("starts", "word_starts", "prefix")
"""What says where sequences lie, and is read on the CPU."""


@dataclass(frozen=True)
class Output:
    """What a model gives for a batch."""

    last: Tensor
    """(N, D), the last layer's hidden states."""
    hidden_states: tuple[Tensor, ...] = ()
    """L+1 tensors (N, D), the embedding output first; empty unless asked for."""


@dataclass(frozen=True)
class Loss:
    """A loss as a sum over predictions, so that parts of a batch add up to the whole."""

    total: Tensor
    """() sum of the losses of all predictions, in nats; divide by `count` for the mean."""
    count: int
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Named sums for the log."""


class Model(Protocol):
    """A network that gives every layer's hidden states. Every model is also an `nn.Module`."""

    @property
    def config(self) -> Any: ...

    @property
    def context(self) -> Context: ...

    def __call__(self, batch: Batch, *, hidden_states: bool = False) -> Output: ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) hidden states to (M, V) scores."""
        ...

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The body's parameters by depth: embeddings, then each layer; the LM head is in none."""
        ...


class Trainable(Protocol):
    """What the training loop asks of an objective or a task."""

    def loss(self, model: Any, batch: Batch) -> Loss: ...


class Objective(Trainable, Protocol):
    """A frozen dataclass: fields are hyper-parameters, methods are behaviour."""

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch: ...


BatchAt = Callable[[int], Batch]
"""A batch as a pure function of the step."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled (or, for prediction, unlabelled) row of a task file."""

    texts: tuple[Text, ...]
    """One text, or two for a sentence pair. For a task about words the tuple of the words."""
    label: Any = None
    """Class name, tuple of class names (multi-label), float (regression), tuple of the tags of all
    words (tagging), or None."""
    row: int = 0
    """Row in the file (of a sentence of several rows its first), counted from 1, for messages."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an evaluation found."""

    metrics: dict[str, float]
    main: str
    """The metric that selects models; larger is better."""
    num_examples: int
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return self.metrics[self.main]


Scores = np.ndarray | Sequence[np.ndarray]
"""(B, K) scores of B examples, or for words a list of the (W, K) scores of each."""

Targets = np.ndarray | Sequence[np.ndarray]
"""(B, ...) labels as numbers, or for words a list of the (W) int64 tags of each example."""


class Task(Protocol):
    """A frozen dataclass that reads labelled files and turns scores into answers."""

    unit: ClassVar[Unit]
    """What a row of scores is about."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes or tags in the order of the outputs, where there are any."""
        ...

    def example(self, text: Any) -> Example:
        """An unlabelled example of what a user gives: a text, a list of words, a pair of texts."""
        ...

    def read(self, path: Any, *, labelled: bool = True) -> list[Example]: ...

    def fit_labels(self, examples: Sequence[Example]) -> "Task":
        """The same task with its label set fixed from the training examples."""
        ...

    @property
    def num_outputs(self) -> int: ...

    def targets(self, examples: Sequence[Example]) -> Targets:
        """Labels as numbers: classes (int64), K classes each or values (float32), or tags."""
        ...

    def loss(self, scores: Tensor, targets: Tensor) -> Loss:
        """The summed loss of rows of scores, end to end, and their targets."""
        ...

    def decode(self, scores: Scores, examples: Sequence[Example]) -> list[Any]:
        """A prediction for each example, with a method `to_dict`."""
        ...

    def evaluate(self, scores: Scores, examples: Sequence[Example]) -> Report: ...

    def degenerate(self, scores: Scores, examples: Sequence[Example]) -> bool:
        """Whether the scores give one answer for everything though the labels differ."""
        ...


class Batches(Protocol):
    """Batches as a pure function of the step, with the number of steps in one pass of the data."""

    steps_per_epoch: int

    def __call__(self, step: int) -> Batch: ...


Documents = Iterator[str]
