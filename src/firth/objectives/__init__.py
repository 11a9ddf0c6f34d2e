"""What a model is trained to predict."""

from firth.objectives.masked import MaskedLM

OBJECTIVES = {"MaskedLM": MaskedLM}

__all__ = ["OBJECTIVES", "MaskedLM"]
