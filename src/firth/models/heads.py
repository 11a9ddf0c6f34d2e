"""What stands on a language model for a task, beside BERT's own head for sequences (`mix.py`)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.models.layers import Dropout
from firth.models.mix import Pooling, SequenceHead, WordPooling, pool
from firth.models.recurrent import Kind, RecurrentStack
from firth.protocols import Unit

RECURRENT: dict[str, tuple[Kind, bool]] = {
    "rnn": ("tanh", False),
    "gru": ("gru", False),
    "lstm": ("lstm", False),
    "bigru": ("gru", True),
    "bilstm": ("lstm", True),
}
"""Name of a recurrent task network to the kind of its cells, and whether it reads both ways."""


class WordHead(nn.Module):
    """Scores for each word: W dropout(h) + b (Devlin et al. 2019, section 5.3).

    With `dense` a layer more, W2 dropout(tanh(W1 h + b1)) + b2, for features that are not trained.
    """

    unit: Unit = "word"

    def __init__(
        self,
        size: int,
        num_outputs: int,
        *,
        dense: bool = False,
        dropout: float = 0.1,
        pooling: WordPooling = "first",
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size) if dense else None
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(size, num_outputs)
        self.pooling: WordPooling = pooling
        for layer in (self.dense, self.out):
            if layer is not None:
                nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, _starts: Tensor) -> Tensor:
        """(M, D) states of words to (M, num_outputs) scores, in float32."""
        with torch.autocast(states.device.type, enabled=False):
            x = states.float()
            x = x if self.dense is None else torch.tanh(self.dense(x))
            return self.out(self.dropout(x))


class RecurrentHead(nn.Module):
    """A recurrent network over the states of a text, then W dropout(h) + b.

    For words h is the state at each word; for a sequence the maximum and the mean over its states,
    or the last state where the network reads one way only. With `second_size` another vector of
    each word is laid beside its state, as ELMo's second mix at the output of the task network
    (Peters et al. 2018, section 3.3).

    Args:
        size: of the input vectors.
        num_outputs: scores.
        network: a name in `RECURRENT`.
        hidden_size: of each direction.
        num_layers: of the recurrent network.
        unit: what the scores are about.
        second_size: of the vectors that come in behind the network; 0 for none.
        dropout: before, between and behind the layers, and of the second vectors.
        pooling: what stands for a word of several tokens.
    """

    def __init__(
        self,
        size: int,
        num_outputs: int,
        *,
        network: str = "bilstm",
        hidden_size: int = 200,
        num_layers: int = 1,
        unit: Unit = "word",
        second_size: int = 0,
        dropout: float = 0.5,
        pooling: WordPooling = "first",
    ) -> None:
        super().__init__()
        kind, both = RECURRENT[network]
        self.stack = RecurrentStack(
            size,
            hidden_size,
            kind=kind,
            num_layers=num_layers,
            bidirectional=both,
            dropout=dropout,
        )
        width = self.stack.output_size + second_size
        self.both = both
        self.unit: Unit = unit
        self.pooling: WordPooling = pooling
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(2 * width if unit == "sequence" and both else width, num_outputs)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor, starts: Tensor, second: Tensor | None = None) -> Tensor:
        """(U, size) states to (U, num_outputs) scores of words or (B, num_outputs) of sequences.

        Args:
            states: of the words or tokens, packed.
            starts: (B+1) on the CPU.
            second: (U, second_size).
        """
        with torch.autocast(states.device.type, enabled=False):
            x = self.stack(self.dropout(states.float()), starts)  # (U, H)
            if second is not None:
                x = torch.cat([x, second.float()], dim=1)
            if self.unit == "sequence":
                ways = ("max", "mean") if self.both else ("last",)
                x = torch.cat([pool(x, starts, how) for how in ways], dim=1)  # (B, 2H) or (B, H)
            return self.out(self.dropout(x))


class ConcatPoolingHead(nn.Module):
    """ULMFiT's classifier (Howard and Ruder 2018, section 3.3).

    h = [last, max, mean] of the states; then two blocks of batch norm, dropout and a linear layer,
    3D to 50 to the outputs, with a ReLU between them. Dropout rates are those of the published
    program (fastai's `PoolingLinearClassifier`).

    Args:
        size: D, the entries of a state that are looked at.
        num_outputs: scores.
        hidden_size: between the blocks.
        last: which token a model has read last; "first" if it reads from right to left.
    """

    unit: Unit = "sequence"
    rates = (0.4, 0.1)

    def __init__(
        self,
        size: int,
        num_outputs: int,
        *,
        hidden_size: int = 50,
        last: Literal["first", "last"] = "last",
    ) -> None:
        super().__init__()
        self.size = size
        self.poolings: tuple[Pooling, ...] = (last, "max", "mean")
        self.norms = nn.ModuleList([BatchNorm(3 * size), BatchNorm(hidden_size)])
        self.dense = nn.Linear(3 * size, hidden_size)
        self.out = nn.Linear(hidden_size, num_outputs)
        self.dropouts = nn.ModuleList(map(Dropout, self.rates))

    def forward(self, states: Tensor, starts: Tensor) -> Tensor:
        """(N, D) states to (B, num_outputs) scores, in float32."""
        with torch.autocast(states.device.type, enabled=False):
            states = states[:, : self.size].float()
            x = torch.cat([pool(states, starts, how) for how in self.poolings], dim=1)  # (B, 3D)
            x = self.dense(self.dropouts[0](self.norms[0](x)))
            return self.out(self.dropouts[1](self.norms[1](F.relu(x))))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm for short trainings and small batches.

    The running statistics are averages over the batches so far (Ioffe and Szegedy 2015, algorithm
    2, step 10) until a batch counts for a tenth, and decay from there on. From their usual start,
    0 and 1, they would be far off for long: after 60 batches a variance of 0.001 would be taken for
    three times as much. A batch of one, which has no variance, uses them as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        if self.training and len(input) == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if self.training:
            assert self.num_batches_tracked is not None
            self.momentum = max(0.1, 1 / (int(self.num_batches_tracked) + 1))
        return super().forward(input)


Head = SequenceHead | WordHead | RecurrentHead | ConcatPoolingHead
HEADS = (SequenceHead, WordHead, RecurrentHead, ConcatPoolingHead)
