"""Frozen features with a learned layer mix: the body runs once, only mix and head are trained."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from firth.adaptation.features import Features, extract, score_features
from firth.adaptation.fitting import Fitted, check_settings, fit
from firth.adaptation.network import AdaptedNetwork, EncodedExamples, TaskNetwork, task_head
from firth.device import Precision
from firth.errors import ConfigError
from firth.models.heads import Head, WordHead
from firth.models.mix import LayerMix, SequenceHead
from firth.protocols import Batch, Example, Loss, Task
from firth.text.batches import BucketedBatches
from firth.training import AdamW, Schedule, Training


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Keeps the language model as it is and learns which layers matter (Peters et al. 2018, eq. 1).

    Every layer's states are computed once, layer-normalised; the mix and a task network are trained
    on them. With the task network "head" that is a layer of tanh and one more, on the average of a
    text's tokens or on each word, and takes seconds. A recurrent one reads the states of all words
    (of a text that is classified, all tokens). The paper's task networks also see a word vector of
    their own, x_k beside ELMo_k (section 3.3); here the mix is all they see.
    """

    epochs: float | None = None
    """None: 20 epochs or `min_steps`, whichever is longer."""
    min_steps: int = 600
    """Fewest steps where no epochs are given."""
    batch_size: int = 32
    """Examples in a step."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Of AdamW, for matrices and embeddings."""
    task_network: TaskNetwork = "head"
    """What reads the mix: two layers ("head"), or a recurrent network."""
    hidden_size: int = 200
    """Of a recurrent network, in each direction."""
    num_layers: int = 1
    """Of a recurrent network."""
    dropout: float = 0.2
    """Of the mix and inside the task network."""
    layers: Literal["all", "last"] | int = "all"
    """What is mixed: all layers, the last alone, or one by its number (0: the embeddings)."""
    output_mix: bool = False
    """A second mix, with weights of its own, beside the states of the recurrent network (Peters et
    al. 2018, section 5.2)."""
    mix_penalty: float = 0.001
    """lambda of the L2 penalty on the mix's weights (Peters et al. 2018, section 3.3)."""
    layer_norm: bool = True
    """Whether each layer's states are normalised before they are mixed."""
    pooling: Literal["auto", "first", "last", "mean"] = "auto"
    """What stands for a word of several tokens, and for a text without a recurrent network. "auto":
    its first token, of a decoder the last; of a text the mean."""
    patience: int = 20
    """Scorings of dev without improvement before stopping, of about twenty."""
    max_length: int = 128
    """Tokens of a text that are read; a longer one is cut at its end, tagged words into several
    pieces. At most the model's own."""
    restarts: int = 3
    """Other seeds to try where a run is degenerate."""
    precision: Precision = "auto"
    """Of the matrix products; auto: bfloat16 where the processor is fast at it."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.output_mix and self.task_network == "head":
            raise ConfigError(
                "output_mix lays a second mix beside the states of a recurrent network; set "
                "task_network, for instance to 'bilstm', or leave output_mix out"
            )

    def assemble(self, body: nn.Module, head: Head) -> AdaptedNetwork:
        """Body, mix and a task network of the inputs and outputs of `head`."""
        size, outputs = head.out.in_features, head.out.out_features
        if head.unit == "word":
            pooling = head.pooling if isinstance(head, WordHead) else "first"
            head = WordHead(size, outputs, dense=True, dropout=self.dropout, pooling=pooling)
        else:
            how = "mean" if self.pooling == "auto" else self.pooling
            head = SequenceHead(size, outputs, dropout=self.dropout, pooling=how)
        head = task_head(
            head,
            self.task_network,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            dropout=self.dropout,
            second_size=size if self.output_mix else 0,
        )
        layers = self._chosen(len(body.layers))  # type: ignore[arg-type]
        mixes = [LayerMix(len(layers), layer_norm=self.layer_norm) for _ in range(2)]
        second = mixes[1] if self.output_mix else None
        return AdaptedNetwork(body, head, mixes[0], output_mix=second, layers=layers)

    def network(self, body: nn.Module, head: Head, seed: int) -> AdaptedNetwork:
        """The body (a copy, untouched), with a fresh mix and task network."""
        torch.manual_seed(seed)
        return self.assemble(copy.deepcopy(body).requires_grad_(False), head)

    def prepare(self, make: Callable[[], AdaptedNetwork], data: EncodedExamples) -> Features:
        """What all seeds train on: the features of texts, by a network that `make` gives."""
        return extract(make().eval(), data, self.precision)

    def fit(
        self,
        network: AdaptedNetwork,
        task: Task,
        train: tuple[Sequence[Example], Features],
        dev: tuple[Sequence[Example], Features],
        seed: int,
    ) -> Fitted:
        """Trains the mix and the task network in place."""
        features, targets = train[1], task.targets(train[0])
        batches = BucketedBatches(
            features.lengths,
            lambda chosen: features.batch(chosen, targets),
            batch_size=self.batch_size,
            seed=seed,
        )
        training = Training(
            optimizer=AdamW(lr=self.lr, beta2=0.999, weight_decay=self.weight_decay),
            schedule=Schedule(warmup=0.1),
            precision="float32",
            seed=seed,
            workers=0,
        )
        epoch = batches.steps_per_epoch
        default = max(20 * epoch, self.min_steps)
        return fit(
            network,
            task,
            FeatureObjective(task, self.mix_penalty),
            batches,
            training,
            evaluate=lambda: score_features(network, dev[1]),
            dev=dev[0],
            total_steps=default if self.epochs is None else max(1, round(self.epochs * epoch)),
            patience=self.patience,
        )

    def _chosen(self, num_layers: int) -> tuple[int, ...]:
        """The entries of `hidden_states` that are mixed."""
        if self.layers == "all":
            return tuple(range(num_layers + 1))
        layer = -1 if self.layers == "last" else int(self.layers)
        if not -num_layers - 1 <= layer <= num_layers:
            raise ConfigError(
                f"layer {layer} does not exist: this model has the embedding output (0) and layers "
                f"1 to {num_layers}"
            )
        return (layer % (num_layers + 1),)


@dataclass(frozen=True)
class FeatureObjective:
    """A task's loss on features, with the penalty on the mixes."""

    task: Task
    mix_penalty: float

    def loss(self, model: AdaptedNetwork, batch: Batch) -> Loss:
        """Summed loss; the penalty counts once a row, so once in the mean."""
        assert batch.targets is not None
        scores = model.score(batch.input_ids.float(), batch.starts)
        loss = self.task.loss(scores, batch.targets)
        penalty: Tensor = self.mix_penalty * model.penalty() * loss.count
        return Loss(loss.total + penalty, loss.count)
