"""What a model is trained to predict."""

from firth.objectives.boundary import SpanBoundary
from firth.objectives.causal import BidirectionalLM, CausalLM
from firth.objectives.denoising import Deshuffling, PrefixLM, SpanCorruption
from firth.objectives.hybrid import Hybrid
from firth.objectives.masked import MaskedLM
from firth.objectives.sentence_pairs import SentencePairs
from firth.objectives.sequence_to_sequence import SequenceToSequence
from firth.objectives.word_context import CBOW, GloVe, SkipGram, WordContext

Objective = (
    MaskedLM
    | SentencePairs
    | SpanBoundary
    | CausalLM
    | BidirectionalLM
    | PrefixLM
    | Hybrid
    | SpanCorruption
    | Deshuffling
    | SequenceToSequence
    | WordContext
)

OBJECTIVES: dict[str, type[Objective]] = {
    "MaskedLM": MaskedLM,
    "SentencePairs": SentencePairs,
    "SpanBoundary": SpanBoundary,
    "CausalLM": CausalLM,
    "BidirectionalLM": BidirectionalLM,
    "PrefixLM": PrefixLM,
    "Hybrid": Hybrid,
    "SpanCorruption": SpanCorruption,
    "Deshuffling": Deshuffling,
    "SequenceToSequence": SequenceToSequence,
    "SkipGram": SkipGram,
    "CBOW": CBOW,
    "GloVe": GloVe,
}

__all__ = [
    "CBOW",
    "OBJECTIVES",
    "BidirectionalLM",
    "CausalLM",
    "Deshuffling",
    "GloVe",
    "Hybrid",
    "MaskedLM",
    "Objective",
    "PrefixLM",
    "SentencePairs",
    "SequenceToSequence",
    "SkipGram",
    "SpanBoundary",
    "SpanCorruption",
    "WordContext",
]
