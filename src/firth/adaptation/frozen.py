"""Frozen features with a learned layer mix: the body runs once, only mix and head are trained."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from firth.adaptation.fitting import Fitted, fit
from firth.adaptation.network import AdaptedNetwork, EncodedExamples
from firth.device import Precision
from firth.inference.forward import Engine
from firth.models.mix import LayerMix, SequenceHead
from firth.protocols import Batch, Example, Loss, Task
from firth.text.batches import random_stream
from firth.training import AdamW, Schedule, Training


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Keeps the language model as it is and learns which layers matter (Peters et al. 2018, eq. 1).

    Every layer's states are layer-normalised and averaged over the tokens once; the mix and a
    two-layer head are then trained on these features, which takes seconds.
    """

    epochs: float | None = None
    """None: 20 epochs or `min_steps`, whichever is longer."""
    min_steps: int = 600
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    dropout: float = 0.2
    mix_penalty: float = 0.001
    """lambda of the L2 penalty on the mix's weights (Peters et al. 2018, section 3.2)."""
    layer_norm: bool = True
    patience: int = 20
    max_length: int = 128
    restarts: int = 3
    precision: Precision = "auto"

    def network(self, body: nn.Module, head: SequenceHead, seed: int) -> AdaptedNetwork:
        """The body (shared, untouched), a layer mix and a head that averages tokens."""
        torch.manual_seed(seed)
        size, outputs = head.out.in_features, head.out.out_features
        head = SequenceHead(size, outputs, dropout=self.dropout, pooling="mean")
        mix = LayerMix(len(body.layers) + 1, layer_norm=self.layer_norm)  # type: ignore[arg-type]
        return AdaptedNetwork(copy.deepcopy(body).requires_grad_(False), head, mix)

    def fit(
        self,
        network: AdaptedNetwork,
        task: Task,
        train: tuple[Sequence[Example], EncodedExamples],
        dev: tuple[Sequence[Example], EncodedExamples],
        seed: int,
    ) -> Fitted:
        """Trains the mix and the head of one network in place."""
        features = extract(network, train[1], self.precision)
        device = next(network.parameters()).device
        held_out = torch.from_numpy(extract(network, dev[1], self.precision)).to(device)
        batches = FeatureBatches(features, task.targets(train[0]), self.batch_size, seed)
        training = Training(
            optimizer=AdamW(lr=self.lr, beta2=0.999, weight_decay=self.weight_decay),
            schedule=Schedule(warmup=0.1),
            precision="float32",
            seed=seed,
            workers=0,
        )
        epoch = batches.steps_per_epoch
        default = max(20 * epoch, self.min_steps)
        total = default if self.epochs is None else max(1, round(self.epochs * epoch))

        def evaluate() -> np.ndarray:
            network.eval()
            with torch.inference_mode():
                return network.score_features(held_out).cpu().numpy()

        objective = FeatureObjective(task, self.mix_penalty)
        return fit(
            network,
            task,
            objective,
            batches,
            training,
            evaluate=evaluate,
            dev=dev[0],
            total_steps=total,
            patience=self.patience,
        )


def extract(network: AdaptedNetwork, data: EncodedExamples, precision: Precision) -> np.ndarray:
    """(examples, L+1, D) float32 features of a frozen network."""
    engine = Engine.of(network, precision, 0)
    found: np.ndarray | None = None

    def compute(_chosen: np.ndarray, batch: Batch) -> np.ndarray:
        model = engine.model
        assert isinstance(model, AdaptedNetwork)
        output = model.body(batch, hidden_states=True)
        return model.features(batch, output).cpu().numpy()

    for chosen, _, some in engine.run(data.ids, compute, segments=data.segments):
        if found is None:
            found = np.empty((len(data.ids), *some.shape[1:]), dtype=np.float32)
        found[chosen] = some
    assert found is not None
    return found


class FeatureBatches:
    """batch(step) of feature rows, shuffled anew each epoch; they stand in `input_ids`."""

    def __init__(
        self, features: np.ndarray, targets: np.ndarray, batch_size: int, seed: int
    ) -> None:
        self.features, self.targets = features, targets
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = -(-len(features) // batch_size)

    def __call__(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = random_stream(self.seed, 0, epoch).permutation(len(self.features))
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        return Batch(
            input_ids=torch.from_numpy(self.features[chosen]),
            starts=torch.arange(len(chosen) + 1),
            targets=torch.from_numpy(self.targets[chosen]),
        )


@dataclass(frozen=True)
class FeatureObjective:
    """A task's loss on feature rows, with the penalty on the mix."""

    task: Task
    mix_penalty: float

    def loss(self, model: AdaptedNetwork, batch: Batch) -> Loss:
        """Summed loss; the penalty counts once a row."""
        assert batch.targets is not None
        assert model.mix is not None
        loss = self.task.loss(model.score_features(batch.input_ids), batch.targets)
        penalty: Tensor = self.mix_penalty * model.mix.penalty() * loss.count
        return Loss(loss.total + penalty, loss.count)
