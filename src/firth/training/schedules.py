"""Learning-rate schedules: pure functions of the step, as a factor of the peak rate."""

import math
from dataclasses import dataclass
from typing import Literal

from firth.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up to 1, then a decay.

    With t = step + 1, w warm-up steps and T steps in all the factor is t / w up to t = w. Then,
    with u = (step - w) / (T - w), which is 1 behind the last step, so that this one counts, too:

    | shape        | factor after warm-up                                 | source              |
    | ------------ | ---------------------------------------------------- | ------------------- |
    | linear       | 1 - (1 - floor) u                                    | Devlin et al. 2019  |
    | cosine       | floor + (1 - floor) (1 + cos(pi u)) / 2              | Loshchilov 2017     |
    | inverse_sqrt | sqrt(w / t)                                          | Vaswani et al. 2017 |
    | trapezoid    | 1, then linear to `floor` over the last `decay` of T | Zhai et al. 2022    |
    | constant     | 1                                                    |                     |

    The shape slanted rises from `floor` instead of 0, and falls back to it in a line (Howard and
    Ruder 2018, eq. 3, with cut_frac = warmup, ratio = 1 / floor, cut = floor(T cut_frac)):

        p = step / cut before cut, then 1 - (step - cut) / (T - cut);  floor + (1 - floor) p

    The paper writes cut (1 / cut_frac - 1) for T - cut: the same where T cut_frac is whole, and
    below `floor` at the end where it is not.
    """

    shape: Literal["linear", "cosine", "inverse_sqrt", "trapezoid", "constant", "slanted"] = (
        "linear"
    )
    """The course behind the warm-up."""
    warmup: float = 0.06
    """Steps of warm-up if 1 or more, a share of all steps if less."""
    decay: float = 0.4
    """Share of all steps that a trapezoid's last leg takes; at most those behind the warm-up."""
    floor: float = 0.0
    """Factor at the end; inverse_sqrt and constant have none."""

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 0 <= self.floor <= 1 or not 0 < self.decay <= 1:
            raise ConfigError(
                f"Schedule: warmup {self.warmup}, floor {self.floor}, decay {self.decay}; expected "
                "warmup >= 0, 0 <= floor <= 1 and 0 < decay <= 1"
            )

    def warmup_steps(self, total: int) -> int:
        """Steps of warm-up in a run of `total` steps."""
        return int(self.warmup) if self.warmup >= 1 else round(self.warmup * total)

    def __call__(self, step: int, total: int) -> float:
        """The factor at `step` (from 0) of `total`."""
        if self.shape == "slanted":
            return self._slanted(step, total)
        warm = self.warmup_steps(total)
        t = step + 1
        if t <= warm:
            return t / warm
        u = min(1.0, (step - warm) / max(1, total - warm))
        if self.shape == "linear":
            return 1 - (1 - self.floor) * u
        if self.shape == "cosine":
            return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * u)) / 2
        if self.shape == "inverse_sqrt":
            return math.sqrt(max(1, warm) / t)
        if self.shape == "trapezoid":
            left = (total - step) / min(self.decay * total, total - warm)
            return self.floor + (1 - self.floor) * min(1.0, max(0.0, left))
        return 1.0

    def _slanted(self, step: int, total: int) -> float:
        cut = int(self.warmup) if self.warmup >= 1 else int(self.warmup * total)
        p = step / cut if step < cut else 1 - (step - cut) / max(1, total - cut)
        return self.floor + (1 - self.floor) * max(0.0, p)
