"""Ways to reuse a language model for a task."""

from firth.adaptation.finetuning import FineTuning
from firth.adaptation.frozen import Frozen
from firth.adaptation.gradual import GradualUnfreezing

Adaptation = FineTuning | Frozen | GradualUnfreezing

ADAPTATIONS: dict[str, type[Adaptation]] = {
    "finetune": FineTuning,
    "frozen": Frozen,
    "gradual": GradualUnfreezing,
}

__all__ = ["ADAPTATIONS", "Adaptation", "FineTuning", "Frozen", "GradualUnfreezing"]
