"""Full fine-tuning with what makes it stable on few labels."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from firth.adaptation.fitting import Fitted, check_settings, fit, labelled_batches, scorer
from firth.adaptation.network import (
    AdaptedNetwork,
    EncodedExamples,
    TaskNetwork,
    TaskObjective,
    task_head,
)
from firth.device import Precision
from firth.errors import ConfigError
from firth.models import AWDLSTM
from firth.models.heads import Head
from firth.models.layers import Dropout
from firth.protocols import Example, Task
from firth.training import AdamW, Schedule, Training

UNUSED = ("head", "pooler", "pair_head", "boundary_head", "decoder", "outputs", "bias")
"""Parts of a language model that predict, and that no task trains."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Trains every weight with the head (Devlin et al. 2019, section 4 and A.3).

    By default one top layer in six is drawn anew (Zhang et al. 2021, section 4), Adam corrects its
    bias (their section 3), a tenth of the steps warms up (Mosbach et al. 2021), and few labels are
    seen many times (both): without `epochs`, training lasts three epochs or `min_steps`, whichever
    is longer.
    """

    epochs: float | None = None
    """Passes over the examples. None: three, or `min_steps`, whichever is longer."""
    min_steps: int = 300
    """Fewest steps where no epochs are given."""
    batch_size: int = 32
    """Examples in a step."""
    lr: float = 5e-4
    """Peak learning rate: 5e-4 suits 4x256; 2e-5 to 5e-5 suit base-sized models."""
    weight_decay: float = 0.01
    """Of AdamW, for matrices and embeddings."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises; then it falls to 0 in a line."""
    reset_layers: int | None = None
    """Top layers drawn anew before training; None for one in six (2 of base, none of mini)."""
    pooling: Literal["auto", "first", "last", "mean"] = "auto"
    """What the head sees of a sequence: its first token, as BERT's and RoBERTa's own heads do, its
    last, which alone has seen all of a decoder's text (Radford et al. 2018, section 3.2), or the
    mean of all, which few labels favour. "auto" takes the first in BERT and its kin, the token that
    was read last in models that read one way (decoders, AWD-LSTM, an encoder of one LSTM), and the
    mean in all others. For tags: what it sees of a word of several tokens; "auto" takes the first,
    of models that read one way the one that was read last."""
    task_network: TaskNetwork = "head"
    """What is trained on the last layer: the family's own head for sequences and a linear layer for
    words ("head"), or a recurrent network: with a model that has no layers of its own (static
    vectors, or random ones) this is the network of the years before contextual vectors."""
    hidden_size: int = 200
    """Of a recurrent network, in each direction."""
    num_layers: int = 1
    """Of a recurrent network."""
    dropout: float = 0.1
    """Of the language model and the head; AWD-LSTM keeps its own but the last."""
    patience: int = 20
    """Scorings of dev without improvement before stopping. There are about twenty a run, so by
    default the whole schedule runs and the weights that were best on dev are kept."""
    max_length: int = 128
    """Tokens of a text that are read; a longer one is cut at its end, tagged words into several
    pieces. At most the model's own."""
    restarts: int = 3
    """Other seeds to try where a run is degenerate."""
    precision: Precision = "auto"
    """Of the matrix products; auto: bfloat16 where the processor is fast at it."""

    def __post_init__(self) -> None:
        check_settings(self)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of a run."""
        if self.epochs is not None:
            return max(1, round(self.epochs * steps_per_epoch))
        return max(3 * steps_per_epoch, self.min_steps)

    def assemble(self, body: nn.Module, head: Head) -> AdaptedNetwork:
        """Body and task network, the one that `head` is or one of its sizes."""
        return AdaptedNetwork(
            body,
            task_head(
                head,
                self.task_network,
                hidden_size=self.hidden_size,
                num_layers=self.num_layers,
                dropout=self.dropout,
            ),
        )

    def network(self, body: nn.Module, head: Head, seed: int) -> AdaptedNetwork:
        """A trainable copy of the language model's body, with the head."""
        torch.manual_seed(seed)
        network = self.assemble(copy.deepcopy(body), head).requires_grad_(True)
        depth = len(network.body.layers)  # type: ignore[arg-type]
        reset = depth // 6 if self.reset_layers is None else self.reset_layers
        if not 0 <= reset <= depth:
            raise ConfigError(f"reset_layers is {reset}, and the model has {depth} layers")
        if reset:
            network.body.reset_top_layers(reset)  # type: ignore[operator]
        set_dropout(network.body, self.dropout)
        freeze_unused(network.body)
        return network

    def prepare(
        self, _make: Callable[[], AdaptedNetwork], data: EncodedExamples
    ) -> EncodedExamples:
        """What all seeds train on: the texts themselves."""
        return data

    def fit(
        self,
        network: AdaptedNetwork,
        task: Task,
        train: tuple[Sequence[Example], EncodedExamples],
        dev: tuple[Sequence[Example], EncodedExamples],
        seed: int,
    ) -> Fitted:
        """Trains one network in place."""
        batches = labelled_batches(task, train, self.batch_size, seed)
        training = Training(
            optimizer=AdamW(lr=self.lr, beta2=0.999, weight_decay=self.weight_decay),
            schedule=Schedule(warmup=self.warmup),
            precision=self.precision,
            seed=seed,
            workers=0,
        )
        return fit(
            network,
            task,
            TaskObjective(task),
            batches,
            training,
            evaluate=scorer(network, dev[1], self.precision),
            dev=dev[0],
            total_steps=self.total_steps(batches.steps_per_epoch),
            patience=self.patience,
        )


def freeze_unused(body: nn.Module) -> None:
    """Takes what no task uses out of the training."""
    for name in UNUSED:
        unused = getattr(body, name, None)
        if isinstance(unused, (nn.Module, nn.Parameter)):
            unused.requires_grad_(False)


def set_dropout(body: nn.Module, rate: float) -> None:
    """Sets the dropout of states; AWD-LSTM keeps its own.

    All but that behind its last layer, which is the language model's softmax's alone in the
    published program: a task's head has a dropout of its own.
    """
    if isinstance(body, AWDLSTM):
        body.config = replace(body.config, output_dropout=0.0)
    for module in body.modules():
        if isinstance(module, Dropout):
            module.rate = rate
