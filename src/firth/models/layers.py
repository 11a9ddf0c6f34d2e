"""Bricks that see a flat (N, D): feed-forward layers, dropout, the language-model head."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.device import round_rows, uncompiled
from firth.models.norms import LayerNorm

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
"""GELU (Hendrycks and Gimpel 2016) and its approximation in GPT; SiLU, also known as Swish."""

_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Scores computed at a time by the head's loss: on the CPU eight megabytes of bfloat16."""


def random_bytes(shape: torch.Size) -> Tensor:
    """Uniform uint8 on the CPU, from a generator seeded by torch's: `torch.manual_seed` fixes them.

    Dropout spends one byte an element: drawing floats would cost more than the layer itself.
    """
    count = math.prod(shape)
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    words = generator.random_raw(-(-count // 8))
    return torch.from_numpy(words.view(np.uint8)[:count]).view(shape)


def keep_mask(drawn: Tensor, rate: float, like: Tensor) -> Tensor:
    """Zeros (with probability `rate`) and ones in the dtype of `like`, from random bytes.

    The rate is thereby rounded to a multiple of 1/256; `keep_scale` makes up for it exactly.
    """
    return torch.ge(drawn, _dropped_bytes(rate), out=torch.empty(drawn.shape, dtype=like.dtype))


def _mask_like(x: Tensor, rate: float) -> Tensor:
    if x.device.type == "cpu":
        return keep_mask(random_bytes(x.shape), rate, x)
    return torch.rand_like(x, dtype=torch.float32).ge_(rate).to(x.dtype)


def keep_scale(rate: float, device: torch.device) -> float:
    """What kept elements are multiplied by, so that the expectation is unchanged."""
    return 1 / (1 - (_dropped_bytes(rate) / 256 if device.type == "cpu" else rate))


def _dropped_bytes(rate: float) -> int:
    return min(255, max(1, round(rate * 256)))


class _DropoutAdd(torch.autograd.Function):
    """residual + dropout(x) in one pass over memory."""

    @staticmethod
    def forward(ctx, residual: Tensor, x: Tensor, rate: float) -> Tensor:  # type: ignore[override]
        mask = _mask_like(x, rate)
        ctx.scale = keep_scale(rate, x.device)
        ctx.save_for_backward(mask)
        return torch.addcmul(residual, x, mask, value=ctx.scale)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return grads[0], (grads[0] * mask).mul_(ctx.scale), None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:  # type: ignore[override]
        mask = _mask_like(x, rate)
        ctx.scale = keep_scale(rate, x.device)
        ctx.save_for_backward(mask)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return (grads[0] * mask).mul_(ctx.scale), None


def dropped(x: Tensor, rate: float) -> Tensor:
    """`x` with a share `rate` of its entries set to zero, and the others scaled up."""
    if rate <= 0:
        return x
    drop = _Dropout.apply if x.device.type != "cpu" else _drop_on_cpu
    return drop(x, rate)  # type: ignore[return-value]


@uncompiled  # numpy draws the bytes
def _drop_on_cpu(x: Tensor, rate: float) -> Tensor:
    return _Dropout.apply(x, rate)  # type: ignore[return-value]


@uncompiled  # numpy draws the bytes
def _drop_and_add_on_cpu(residual: Tensor, x: Tensor, rate: float) -> Tensor:
    return _DropoutAdd.apply(residual, x, rate)  # type: ignore[return-value]


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014); `add` fuses it with the residual sum that follows it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @property
    def active(self) -> bool:
        return self.training and self.rate > 0

    def forward(self, x: Tensor) -> Tensor:
        return dropped(x, self.rate) if self.active else x

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """The sum residual + dropout(x)."""
        if not self.active:
            return residual + x
        add = _DropoutAdd.apply if x.device.type != "cpu" else _drop_and_add_on_cpu
        return add(residual, x.to(residual.dtype), self.rate)  # type: ignore[return-value]


_GELUS = {"gelu": "none", "gelu_tanh": "tanh"}
"""Activations that have a kernel for their gradient, and its name for the approximation."""


class _GeGLU(torch.autograd.Function):
    """gelu(x) * y of (N, 2F) = [x, y]; the gradient is written in place, not put together."""

    @staticmethod
    def forward(ctx, both: Tensor, approximate: str) -> Tensor:  # type: ignore[override]
        x, gate = both.chunk(2, dim=-1)
        act = F.gelu(x, approximate=approximate)
        ctx.save_for_backward(both, act)
        ctx.approximate = approximate
        return act * gate

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        (both, act), (grad,) = ctx.saved_tensors, grads
        x, gate = both.chunk(2, dim=-1)
        d_both = torch.empty_like(both)
        d_x, d_gate = d_both.chunk(2, dim=-1)
        torch.mul(grad, act, out=d_gate)
        torch.ops.aten.gelu_backward.grad_input(
            grad * gate, x, approximate=ctx.approximate, grad_input=d_x
        )
        return d_both, None


@uncompiled  # it writes into views
def geglu(both: Tensor, approximate: str) -> Tensor:
    """gelu(x) * y of (N, 2F) = [x, y] (Shazeer 2020, eq. 6), (N, F)."""
    return _GeGLU.apply(both, approximate)  # type: ignore[return-value]


class FeedForward(nn.Module):
    """W2 act(W1 x), or gated: W2 (act(W1 x) * V x) (Shazeer 2020), with V below W1 in one matrix.

    Vaswani et al. 2017, section 3.3, with GELU (Hendrycks and Gimpel 2016) for BERT; GeGLU for
    ModernBERT. T5 drops out what the activation gives (Raffel et al. 2020, section 2.1).
    """

    def __init__(
        self,
        size: int,
        intermediate_size: int,
        *,
        activation: Activation,
        gated: bool,
        bias: bool,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(size, intermediate_size * (2 if gated else 1), bias=bias)
        self.down = nn.Linear(intermediate_size, size, bias=bias)
        self.activation = activation
        self.gated = gated
        self.dropout = nn.Identity() if dropout is None else Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)  # (N, F) or (N, 2F)
        if self.gated and self.activation in _GELUS and x.device.type == "cpu":
            return self.down(self.dropout(geglu(x, _GELUS[self.activation])))
        act = ACTIVATIONS[self.activation]
        if self.gated:
            x, gate = x.chunk(2, dim=-1)  # (N, F) each
            return self.down(self.dropout(act(x) * gate))
        return self.down(self.dropout(act(x)))


class LanguageModelHead(nn.Module):
    """Scores over the vocabulary: E norm(act(W h)) + b, with E the input embedding (tied).

    Devlin et al. 2019: the transform before the softmax has an activation and a layer norm. The
    embedding matrix is passed in at each call, so the head owns no second copy of it.
    """

    def __init__(
        self,
        size: int,
        vocab_size: int,
        *,
        activation: Activation,
        eps: float,
        dense_bias: bool = True,
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size, bias=dense_bias)
        self.norm = LayerNorm(size, eps=eps, bias=norm_bias)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.activation = activation

    def transform(self, hidden: Tensor) -> Tensor:
        return self.norm(ACTIVATIONS[self.activation](self.dense(hidden)))

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """(M, D) hidden states to (M, V) scores."""
        return F.linear(self.transform(hidden), embedding, self.bias)

    def loss(self, hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy of (M) `targets`, in nats, without keeping the (M, V) scores."""
        hidden = self.transform(round_up(hidden))
        return linear_cross_entropy(hidden, embedding, self.bias, targets)


def round_up(hidden: Tensor) -> Tensor:
    """(M, D) with spare rows of zeros (see `round_rows`)."""
    rows = round_rows(len(hidden), hidden.device)
    return F.pad(hidden, (0, 0, 0, rows - len(hidden)))


def _rows_at_once(embedding: Tensor) -> int:
    """Rows whose scores over the (V, D) entries are computed at a time."""
    chunk = _CHUNK_ELEMENTS.get(embedding.device.type, _CHUNK_ELEMENTS["cpu"])
    return max(1, chunk // embedding.shape[0])


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -w q' log softmax(h E' + b); the gradients are made in the forward pass.

    w is a row's weight; q is e / V everywhere and 1 - e more at the target, e being the label
    smoothing.

    The scores of a chunk of rows become probabilities and then the gradient, so memory is that of
    one chunk whatever M and V are. All is in the dtype of `hidden`; in bfloat16 a probability, and
    so its log, is off by at most 2^-9, less than the rounding of the scores themselves.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        hidden: Tensor,
        embedding: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        smoothing: float,
    ) -> Tensor:
        dtype = hidden.dtype
        weight = embedding.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(embedding)
        d_bias = None if bias is None else torch.zeros_like(bias)
        total = torch.zeros((), device=hidden.device)
        rows = _rows_at_once(weight)
        for i in range(0, hidden.shape[0], rows):  # few and large: each adds a (V, D) matrix
            h, target = hidden[i : i + rows], targets[i : i + rows]
            row = torch.arange(len(target), device=target.device)
            scores = F.linear(h, weight, offset)
            p = torch.softmax(scores, dim=-1)  # (rows, V)
            # The log of the sum of exponentials, by the largest: small probabilities are 0 in p.
            whole = scores.amax(dim=-1).float() - p.amax(dim=-1).float().log_()
            losses = whole[: len(target)] - scores[row, target].float()
            if smoothing:
                mean = scores[: len(target)].mean(1, dtype=torch.float32)
                losses += smoothing * (scores[row, target].float() - mean)
                p -= smoothing / weight.shape[0]
            p[row, target] -= 1 - smoothing  # from here on, the gradient of the scores
            p[len(target) :] = 0
            if weights is not None:
                losses *= weights[i : i + rows]
                p[: len(target)] *= weights[i : i + rows, None].to(dtype)
            total += losses.sum()
            torch.mm(p, weight, out=d_hidden[i : i + rows])
            d_weight += p.t() @ h
            if d_bias is not None:
                d_bias += p.sum(0)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.spent = False
        return total

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        scale = grads[0]
        if ctx.spent:
            raise RuntimeError("the gradients were made once and are given away once")
        ctx.spent = True
        d_bias = None if d_bias is None else d_bias.mul_(scale)
        return d_hidden * scale.to(d_hidden.dtype), d_weight.mul_(scale), d_bias, None, None, None


@uncompiled  # it makes its gradients itself
def linear_cross_entropy(
    hidden: Tensor,
    embedding: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Summed cross-entropy of a linear layer's scores.

    Args:
        hidden: (R, D), of which the first M rows count.
        embedding: (V, D).
        bias: (V), or None.
        targets: (M) int64.
        weights: (M) float32 of each row's loss; None for 1.
        label_smoothing: e, the share of the target's probability that is spread evenly over the
            vocabulary (Szegedy et al. 2016, section 7).

    Returns:
        () float32, the sum over the M rows, in nats.
    """
    if not torch.is_grad_enabled():
        total = hidden.new_zeros((), dtype=torch.float32)
        rows = _rows_at_once(embedding)
        offset = None if bias is None else bias.to(hidden.dtype)
        for i in range(0, len(targets), rows):
            h, target = hidden[: len(targets)][i : i + rows], targets[i : i + rows]
            scores = F.linear(h, embedding.to(h.dtype), offset).float()
            losses = F.cross_entropy(
                scores, target, reduction="none", label_smoothing=label_smoothing
            )
            total += (losses if weights is None else losses * weights[i : i + rows]).sum()
        return total
    with torch.autocast(hidden.device.type, enabled=False):  # all is in the dtype of `hidden`
        return _LinearCrossEntropy.apply(  # type: ignore[return-value]
            hidden, embedding, bias, targets, weights, label_smoothing
        )
