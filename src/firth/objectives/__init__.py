"""What a model is trained to predict."""

from firth.objectives.causal import CausalLM
from firth.objectives.masked import MaskedLM

Objective = MaskedLM | CausalLM

OBJECTIVES: dict[str, type[Objective]] = {"MaskedLM": MaskedLM, "CausalLM": CausalLM}

__all__ = ["OBJECTIVES", "CausalLM", "MaskedLM", "Objective"]
