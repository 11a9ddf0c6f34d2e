"""ULMFiT's fine-tuning: layers unfrozen one by one, a rate for each, slanted triangular."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from firth.adaptation.finetuning import freeze_unused, set_dropout
from firth.adaptation.fitting import Fitted, check_settings, fit, labelled_batches, scorer
from firth.adaptation.network import AdaptedNetwork, EncodedExamples, TaskObjective
from firth.device import Precision
from firth.models.heads import ConcatPoolingHead, Head
from firth.protocols import Example, Task
from firth.training import AdamW, Schedule, State, Training
from firth.training.optimizers import by_depth


@dataclass(frozen=True, kw_only=True)
class GradualUnfreezing:
    """Fine-tunes a classifier as ULMFiT does (Howard and Ruder 2018, section 3.3).

    The first epoch trains the head alone; each further one takes in one more layer group, from the
    top to the embeddings, and then all are trained to the end. Rates fall by `decay` from group to
    group (section 3.2, eq. 1: eta^(l-1) = eta^l / 2.6) and follow one slanted triangle over all
    steps (eq. 3). Adam has the paper's beta1 of 0.7 and beta2 of 0.99 (section 4.1). Each of the
    tricks can be switched off: `unfreezing`, `decay=1`, `slanted`, `concat_pooling`.

    Departures: the published program begins a triangle anew at each stage and unfreezes everything
    from the third epoch on, the paper has one triangle and a group an epoch, as here. Decay of
    weights is off, as in the program (1e-7).
    """

    epochs: float | None = None
    """None: three after the last group is taken in, or `min_steps`, whichever is longer."""
    min_steps: int = 300
    """With few labels these steps are many epochs, and most of them train everything: groups are
    taken in epoch by epoch all the same."""
    batch_size: int = 32
    """Examples in a step."""
    lr: float = 0.01
    """Peak rate of the head: the paper's, which suits AWD-LSTM; 1e-3 to 2e-3 suit Transformers."""
    unfreezing: bool = True
    """False: every epoch trains everything."""
    decay: float = 2.6
    """By what the rate is divided from each group to the one below it; 1 for one rate."""
    slanted: bool = True
    """False: the rate stays as it is."""
    cut: float = 0.1
    """Share of all steps in which the rate rises (`cut_frac`)."""
    ratio: float = 32.0
    """How much lower than its peak the rate begins and ends."""
    concat_pooling: bool = True
    """False: the head that `FineTuning` has; for tags that is so in any case."""
    pooling: Literal["auto", "first", "last", "mean"] = "auto"
    """What stands for a word of several tokens, or for a text without concat pooling."""
    dropout: float = 0.1
    """Of the language model; AWD-LSTM keeps its own but the last, and the concat-pooling head its
    two."""
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

    def assemble(self, body: nn.Module, head: Head) -> AdaptedNetwork:
        """Body and head; of a sequence the concat-pooling head."""
        if self.concat_pooling and head.unit == "sequence":
            # The last layer of an AWD-LSTM has fewer entries than the others: the rest are zero.
            size = getattr(body, "regularised_size", head.out.in_features)
            last = "first" if body.context == "right" else "last"
            head = ConcatPoolingHead(size, head.out.out_features, last=last)
        return AdaptedNetwork(body, head)

    def network(self, body: nn.Module, head: Head, seed: int) -> AdaptedNetwork:
        """A trainable copy of the language model's body, with the head."""
        torch.manual_seed(seed)
        network = self.assemble(copy.deepcopy(body), head).requires_grad_(True)
        set_dropout(network.body, self.dropout)
        freeze_unused(network.body)
        return network

    def prepare(
        self, _make: Callable[[], AdaptedNetwork], data: EncodedExamples
    ) -> EncodedExamples:
        """What all seeds train on: the texts themselves."""
        return data

    def total_steps(self, steps_per_epoch: int, num_groups: int) -> int:
        """Steps of a run over a body of so many layer groups."""
        if self.epochs is not None:
            return max(1, round(self.epochs * steps_per_epoch))
        stages = num_groups if self.unfreezing else 0
        return max((stages + 3) * steps_per_epoch, self.min_steps)

    def trained_groups(self, epoch: int, num_groups: int) -> int:
        """How many layer groups, counted from the top, are trained in an epoch (from 0)."""
        return min(epoch, num_groups) if self.unfreezing else num_groups

    def never_trained(self, num_groups: int) -> int:
        """Layer groups that are still frozen when the epochs that were given are over."""
        if self.epochs is None:
            return 0
        return num_groups - self.trained_groups(math.ceil(self.epochs) - 1, num_groups)

    def schedule(self) -> Schedule:
        """Of the rates, as a factor of their peaks."""
        if not self.slanted:
            return Schedule(shape="constant", warmup=0)
        return Schedule(shape="slanted", warmup=self.cut, floor=1 / self.ratio)

    def optimizers(self, network: AdaptedNetwork) -> list[torch.optim.Optimizer]:
        """One for the head and one for each layer group from the top, each with its own rate."""
        groups = [list(network.head.parameters()), *layer_groups(network.body)[::-1]]
        adam = AdamW(lr=self.lr, beta1=0.7, beta2=0.99, weight_decay=0.0)
        return by_depth(adam, network, groups, self.decay)

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
        groups = layer_groups(network.body)[::-1]
        training = Training(
            schedule=self.schedule(), precision=self.precision, seed=seed, workers=0
        )

        def unfreeze(step: int) -> None:
            epoch, place = divmod(step, batches.steps_per_epoch)
            if place == 0:
                trained = self.trained_groups(epoch, len(groups))
                for i, group in enumerate(groups):
                    for parameter in group:
                        parameter.requires_grad_(i < trained)

        return fit(
            network,
            task,
            TaskObjective(task),
            batches,
            training,
            evaluate=scorer(network, dev[1], self.precision),
            dev=dev[0],
            total_steps=self.total_steps(batches.steps_per_epoch, len(groups)),
            patience=self.patience,
            state=State(network, self.optimizers(network), None),
            at_step=unfreeze,
        )


def layer_groups(body: nn.Module) -> list[list[nn.Parameter]]:
    """The layer groups that a text without a source passes: not those of a decoder beside it."""
    groups = body.layer_groups()  # type: ignore[operator]
    return groups[: 1 + len(body.layers)]  # type: ignore[arg-type]
