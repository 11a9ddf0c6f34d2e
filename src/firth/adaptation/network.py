"""A language model's body with a task's head: what an adaptation trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from firth.inference.forward import Engine
from firth.models.mix import LayerMix, SequenceHead, pool
from firth.protocols import Batch, Example, Loss, Output, Task, Text


class AdaptedNetwork(nn.Module):
    """Body, learned layer mix (where there is one) and head."""

    def __init__(self, body: nn.Module, head: SequenceHead, mix: LayerMix | None = None) -> None:
        super().__init__()
        self.body, self.head, self.mix = body, head, mix

    def forward(self, batch: Batch) -> Tensor:
        """(B, num_outputs) scores."""
        if self.mix is None:
            return self.head(self.body(batch).last, batch.starts)
        return self.score_features(self.features(batch, self.body(batch, hidden_states=True)))

    def features(self, batch: Batch, output: Output) -> Tensor:
        """(B, L+1, D): each layer's states, pooled.

        Pooling by mean or by one token commutes with the mix, so frozen features are pooled once
        and the mix is trained on them.
        """
        assert self.mix is not None
        states = torch.stack(output.hidden_states, dim=1).float()  # (N, L+1, D)
        states = self.mix.normalise(states)
        pooled = pool(states.flatten(1), batch.starts, self.head.pooling)
        return pooled.view(-1, *states.shape[1:])

    def score_features(self, features: Tensor) -> Tensor:
        """(B, L+1, D) pooled states to scores."""
        assert self.mix is not None
        return self.head.classify(self.mix.combine(features))


class SequenceTokenizer(Protocol):
    """The part of a tokenizer that tasks need."""

    def encode_ids(
        self, texts: Sequence[Text], *, max_length: int | None = None
    ) -> list[np.ndarray]: ...

    def encode_pairs_ids(
        self, pairs: Sequence[tuple[Text, Text]], *, max_length: int | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]: ...


@dataclass(frozen=True)
class EncodedExamples:
    """Examples as token ids, truncated to the model's window."""

    ids: list[np.ndarray]
    segments: list[np.ndarray] | None

    @staticmethod
    def of(
        examples: Sequence[Example], tokenizer: SequenceTokenizer, max_length: int
    ) -> "EncodedExamples":
        """Encodes texts, or pairs with their segments."""
        if examples and len(examples[0].texts) == 2:
            pairs = [(example.texts[0], example.texts[1]) for example in examples]
            encoded = tokenizer.encode_pairs_ids(pairs, max_length=max_length)
            return EncodedExamples([ids for ids, _ in encoded], [types for _, types in encoded])
        texts = [example.texts[0] for example in examples]
        return EncodedExamples(tokenizer.encode_ids(texts, max_length=max_length), None)


@dataclass(frozen=True)
class TaskObjective:
    """A task's loss as the training loop sees it."""

    task: Task

    def loss(self, model: AdaptedNetwork, batch: Batch) -> Loss:
        """Summed loss of the batch's sequences."""
        assert batch.targets is not None
        return self.task.loss(model(batch), batch.targets)


def score_examples(engine: Engine, data: EncodedExamples) -> np.ndarray:
    """(examples, num_outputs) float32 scores of an adapted network, in the examples' order."""
    network = engine.model
    assert isinstance(network, AdaptedNetwork)
    scores = np.empty((len(data.ids), network.head.out.out_features), dtype=np.float32)

    def compute(_chosen: np.ndarray, batch: Batch) -> np.ndarray:
        return network(batch).float().cpu().numpy()

    for chosen, _, some in engine.run(data.ids, compute, segments=data.segments):
        scores[chosen] = some
    return scores
