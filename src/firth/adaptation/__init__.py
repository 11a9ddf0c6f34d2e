"""Ways to reuse a language model for a task."""

from firth.adaptation.finetuning import FineTuning
from firth.adaptation.frozen import Frozen

ADAPTATIONS = {"finetune": FineTuning, "frozen": Frozen}

__all__ = ["ADAPTATIONS", "FineTuning", "Frozen"]
