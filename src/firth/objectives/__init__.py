"""What a model is trained to predict."""

from firth.objectives.boundary import SpanBoundary
from firth.objectives.causal import CausalLM
from firth.objectives.denoising import Deshuffling, PrefixLM, SpanCorruption
from firth.objectives.hybrid import Hybrid
from firth.objectives.masked import MaskedLM
from firth.objectives.sentence_pairs import SentencePairs
from firth.objectives.sequence_to_sequence import SequenceToSequence

Objective = (
    MaskedLM
    | SentencePairs
    | SpanBoundary
    | CausalLM
    | PrefixLM
    | Hybrid
    | SpanCorruption
    | Deshuffling
    | SequenceToSequence
)

OBJECTIVES: dict[str, type[Objective]] = {
    "MaskedLM": MaskedLM,
    "SentencePairs": SentencePairs,
    "SpanBoundary": SpanBoundary,
    "CausalLM": CausalLM,
    "PrefixLM": PrefixLM,
    "Hybrid": Hybrid,
    "SpanCorruption": SpanCorruption,
    "Deshuffling": Deshuffling,
    "SequenceToSequence": SequenceToSequence,
}

__all__ = [
    "OBJECTIVES",
    "CausalLM",
    "Deshuffling",
    "Hybrid",
    "MaskedLM",
    "Objective",
    "PrefixLM",
    "SentencePairs",
    "SequenceToSequence",
    "SpanBoundary",
    "SpanCorruption",
]
