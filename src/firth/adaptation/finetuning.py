"""Full fine-tuning with what makes it stable on few labels."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from firth.adaptation.fitting import Fitted, fit
from firth.adaptation.network import (
    AdaptedNetwork,
    EncodedExamples,
    TaskObjective,
    score_examples,
)
from firth.device import Precision
from firth.inference.forward import Engine
from firth.models.layers import Dropout
from firth.models.mix import SequenceHead
from firth.protocols import Example, Task
from firth.text.batches import BucketedSequences
from firth.training import AdamW, Schedule, Training


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Trains every weight with the head (Devlin et al. 2019, section 4 and A.3).

    By default one top layer in six is drawn anew (Zhang et al. 2021, section 4), Adam corrects its
    bias (their section 3), a tenth of the steps warms up (Mosbach et al. 2021), and few labels are
    seen many times (both): without `epochs`, training lasts three epochs or `min_steps`, whichever
    is longer.
    """

    epochs: float | None = None
    min_steps: int = 300
    batch_size: int = 32
    lr: float = 5e-4
    """Peak learning rate: 5e-4 suits 4x256; 2e-5 to 5e-5 suits base-sized models."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    reset_layers: int | None = None
    """Top layers drawn anew before training; None for one in six (2 of base, none of mini)."""
    pooling: Literal["auto", "first", "last", "mean"] = "auto"
    """What the head sees of a sequence: its first token, as BERT's and RoBERTa's own heads do, its
    last, which alone has seen all of a decoder's text (Radford et al. 2018, section 3.2), or the
    mean of all, which few labels favour. "auto" takes the last token of a decoder, the mean in a
    hybrid, in the encoder of an encoder-decoder and where the family's head in `transformers`
    allows it (ModernBERT), else the first."""
    dropout: float = 0.1
    patience: int = 20
    """Scorings of dev without improvement before stopping. There are about twenty a run, so by
    default the whole schedule runs and the weights that were best on dev are kept."""
    max_length: int = 128
    restarts: int = 3
    """Other seeds to try where a run is degenerate."""
    precision: Precision = "auto"

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of a run."""
        if self.epochs is not None:
            return max(1, round(self.epochs * steps_per_epoch))
        return max(3 * steps_per_epoch, self.min_steps)

    def network(self, body: nn.Module, head: SequenceHead, seed: int) -> AdaptedNetwork:
        """A trainable copy of the language model's body, with the head."""
        torch.manual_seed(seed)
        network = AdaptedNetwork(copy.deepcopy(body), head).requires_grad_(True)
        depth = len(network.body.layers)  # type: ignore[arg-type]
        reset = depth // 6 if self.reset_layers is None else self.reset_layers
        if reset:
            network.body.reset_top_layers(reset)  # type: ignore[operator]
        for module in network.modules():
            if isinstance(module, Dropout):
                module.rate = self.dropout
        for name in ("head", "pooler", "pair_head", "boundary_head", "decoder"):
            unused = getattr(network.body, name, None)
            if unused is not None:
                unused.requires_grad_(False)
        return network

    def fit(
        self,
        network: AdaptedNetwork,
        task: Task,
        train: tuple[Sequence[Example], EncodedExamples],
        dev: tuple[Sequence[Example], EncodedExamples],
        seed: int,
    ) -> Fitted:
        """Trains one network in place."""
        examples, data = train
        batches = BucketedSequences(
            data.ids,
            task.targets(examples),
            segments=data.segments,
            batch_size=self.batch_size,
            seed=seed,
        )
        training = Training(
            optimizer=AdamW(lr=self.lr, beta2=0.999, weight_decay=self.weight_decay),
            schedule=Schedule(warmup=self.warmup),
            precision=self.precision,
            seed=seed,
            workers=0,
        )
        length = max(self.max_length, max(map(len, data.ids)))

        def evaluate():
            return score_examples(Engine.of(network, self.precision, length), dev[1])

        return fit(
            network,
            task,
            TaskObjective(task),
            batches,
            training,
            evaluate=evaluate,
            dev=dev[0],
            total_steps=self.total_steps(batches.steps_per_epoch),
            patience=self.patience,
        )
