"""Muon (Jordan et al. 2024) that works on all matrices of one shape together."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from firth.device import compute_dtype

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of the quintic x -> a x + b x^3 + c x^5 that takes singular values towards one."""
_STEPS, _EPS = 5, 1e-7


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V' of each matrix U S V': five Newton-Schulz steps (Jordan et al. 2024).

        X = M / |M|;  five times: A = X X',  X = a X + (b A + c A^2) X

    Singular values end between about 0.7 and 1.2, which is as good for training. The products are
    in bfloat16 where that is fast, else in float32.

    Args:
        matrices: (n, rows, columns).

    Returns:
        (n, rows, columns) in the dtype of the products.
    """
    x = matrices.to(compute_dtype("auto", matrices.device))
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # the smaller Gram matrix
    x = x / x.flatten(1).norm(dim=1).clamp_min(_EPS)[:, None, None]
    for _ in range(_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` in a dozen operations a shape, whatever the number of matrices.

        B = mu B + (1 - mu) G;  O = orthogonal((1 - mu) G + mu B)
        W = (1 - lr wd) W - lr sqrt(max(1, rows / columns)) O

    A matrix that holds several, one above the other, can be taken as those (`parts`).
    """

    def __init__(self, groups: Sequence[dict[str, Any]], **settings: Any) -> None:
        """See `torch.optim.Muon`; a group may have `parts`, the number of its matrices' parts."""
        super().__init__([{"parts": 1, **group} for group in groups], **settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            shapes = defaultdict[torch.Size, list[Tensor]](list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for same in shapes.values():
                self._update(same, group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in matrices if p.grad is not None]
        held = [self.state[p] for p in matrices]
        for state, grad in zip(held, grads, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(grad)
        buffers = [state["momentum_buffer"] for state in held]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])  # type: ignore[attr-defined]
        ahead = torch._foreach_lerp(grads, buffers, group["momentum"])  # type: ignore[attr-defined]
        rows, columns = matrices[0].shape
        rows //= group["parts"]
        change = orthogonal(torch.stack(ahead).view(-1, rows, columns))
        change = change.reshape(len(matrices), -1, columns).to(matrices[0].dtype)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])  # type: ignore[attr-defined]
        rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
        torch._foreach_add_(matrices, list(change.unbind()), alpha=-rate)  # type: ignore[attr-defined]
