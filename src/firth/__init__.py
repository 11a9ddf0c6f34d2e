"""firth pre-trains contextual language models on your own text and transfers them to your tasks.

    corpus = firth.Corpus.from_files("letters/*.txt")
    lm = firth.pretrain(firth.recipe("bert", size="mini"), corpus, "runs/letters")
    lm.fill("The [MASK] was late.")

Names are loaded when first used: `import firth` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firth.adaptation import FineTuning, Frozen, GradualUnfreezing
    from firth.api import AdaptedModel, LanguageModel, adapt, load, pretrain
    from firth.errors import FirthError
    from firth.inference.generation import Decoding
    from firth.protocols import Example
    from firth.recipes import Recipe, recipe
    from firth.tasks import Classification, Tagging
    from firth.text.corpus import Corpus
    from firth.text.tokenizers import Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "AdaptedModel": "firth.api",
    "Classification": "firth.tasks",
    "Corpus": "firth.text.corpus",
    "Decoding": "firth.inference.generation",
    "Example": "firth.protocols",
    "FineTuning": "firth.adaptation",
    "FirthError": "firth.errors",
    "Frozen": "firth.adaptation",
    "GradualUnfreezing": "firth.adaptation",
    "LanguageModel": "firth.api",
    "Recipe": "firth.recipes",
    "Tagging": "firth.tasks",
    "Tokenizer": "firth.text.tokenizers",
    "adapt": "firth.api",
    "load": "firth.api",
    "pretrain": "firth.api",
    "recipe": "firth.recipes",
}

__all__ = [
    "AdaptedModel",
    "Classification",
    "Corpus",
    "Decoding",
    "Example",
    "FineTuning",
    "FirthError",
    "Frozen",
    "GradualUnfreezing",
    "LanguageModel",
    "Recipe",
    "Tagging",
    "Tokenizer",
    "adapt",
    "load",
    "pretrain",
    "recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'firth' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
