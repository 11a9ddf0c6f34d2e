"""A softmax over a sample of a large vocabulary (Jean et al. 2015; Jozefowicz et al. 2016)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from firth.device import round_rows, uncompiled
from firth.models.layers import round_up

_CHUNK = 1 << 22
"""Scores computed at a time."""


def log_uniform_sample(count: int, size: int) -> Tensor:
    """The distinct ones of `count` ids drawn from 0 to size-1 by the law of Zipf.

    Departure: bilm-tf draws on until `count` are distinct, which is 2.7 times as many for 8,192 of
    20,000; the loss corrects for what is drawn here.

    P(k) = log((k + 2) / (k + 1)) / log(size + 1): ids must be in the order of frequency. Draws from
    torch's generator.
    """
    drawn = (torch.rand(count) * math.log(size + 1)).exp_().sub_(1).long()
    return drawn.clamp_(0, size - 1).unique()


def log_uniform_counts(count: int, size: int) -> Tensor:
    """(size) expected times, at most 1, that each id is in a sample: 1 - (1 - P)^count."""
    k = torch.arange(size, dtype=torch.float64)
    p = ((k + 2) / (k + 1)).log() / math.log(size + 1)
    return -torch.expm1(count * torch.log1p(-p)).float()


class _Sampled(torch.autograd.Function):
    """See `sampled_loss`; the gradients are made in the forward pass, a chunk of rows at a time."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        hidden: Tensor,
        true_weight: Tensor,
        true_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        drawn: Tensor,
    ) -> Tensor:
        dtype = hidden.dtype
        matrix, true = weight.to(dtype), true_weight.to(dtype)
        d_hidden, d_true = torch.empty_like(hidden), torch.empty_like(true_weight)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        d_true_bias = torch.empty_like(true_bias)
        total = torch.zeros((), device=hidden.device)
        rows = max(1, _CHUNK // len(matrix))
        place = torch.searchsorted(drawn, targets).clamp_max_(len(drawn) - 1)
        hit = drawn[place] == targets  # the target itself is no negative
        for i in range(0, len(hidden), rows):
            now = slice(i, i + rows)
            h, counted = hidden[now], max(0, min(rows, len(targets) - i))
            scores = F.linear(h, matrix).float() + bias
            own = hit[now].nonzero().squeeze(1)
            scores[own, place[now][own]] = -torch.inf
            score = (h * true[now]).sum(1, dtype=torch.float32) + true_bias[now]
            normaliser = torch.logaddexp(torch.logsumexp(scores, 1), score)
            total += (normaliser - score)[:counted].sum()
            p = scores.sub_(normaliser[:, None]).exp_()
            p[counted:] = 0
            d_bias += p.sum(0)
            p = p.to(dtype)
            d_score = (score - normaliser).exp_().sub_(1)
            d_score[counted:] = 0
            d_true_bias[now] = d_score
            d_true[now] = d_score[:, None] * h
            d_hidden[now] = torch.mm(p, matrix) + d_score[:, None].to(dtype) * true[now]
            d_weight += p.t() @ h
        ctx.save_for_backward(d_hidden, d_true, d_true_bias, d_weight, d_bias)
        return total

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        scale = grads[0]
        return (*(g * scale.to(g.dtype) for g in ctx.saved_tensors), None, None)


@uncompiled
def sampled_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    drawn: Tensor,
    log_counts: Tensor,
) -> Tensor:
    """Summed cross-entropy of each target against the drawn words alone, in nats.

    The score of word k is h w_k + b_k - log E[count of k in the sample], so that the sum over the
    drawn words estimates that over all (Jean et al. 2015, eq. 8 and 9). The gradient is that of the
    full softmax as the sample grows, and biased below. A drawn word that is the target does not
    count against it.

    Args:
        hidden: (M, D).
        weight: (V, D).
        bias: (V).
        targets: (M) int64.
        drawn: (S) distinct ids, rising.
        log_counts: (V) log of the expected counts.

    Returns:
        () float32. It is no perplexity: only a full softmax gives one.
    """
    # Both sides of the product have round numbers of rows (see `round_rows`); none of them counts.
    rows = F.pad(targets, (0, round_rows(len(targets), hidden.device) - len(targets)))
    spare = round_rows(len(drawn), hidden.device) - len(drawn)
    with torch.autocast(hidden.device.type, enabled=False):  # as the head's other loss
        return _Sampled.apply(  # type: ignore[return-value]
            round_up(hidden),
            weight[rows],
            bias[rows] - log_counts[rows],
            F.pad(weight[drawn], (0, 0, 0, spare)),
            F.pad(bias[drawn] - log_counts[drawn], (0, spare), value=-torch.inf),
            targets,
            drawn,
        )
