"""Networks that give every layer's hidden states."""

from firth.models.bert import SIZES, Bert, BertConfig
from firth.models.gpt import GPT, GPTConfig

ModelConfig = BertConfig | GPTConfig
LanguageModelNetwork = Bert | GPT

MODELS: dict[str, tuple[type[ModelConfig], type[LanguageModelNetwork]]] = {
    "BertConfig": (BertConfig, Bert),
    "GPTConfig": (GPTConfig, GPT),
}
"""Name of a configuration to its class and its network."""


def build(config: ModelConfig, *, pooler: bool = False) -> LanguageModelNetwork:
    """A network of this shape with fresh weights; `pooler` is BERT's."""
    return Bert(config, pooler=pooler) if isinstance(config, BertConfig) else GPT(config)


__all__ = [
    "GPT",
    "MODELS",
    "SIZES",
    "Bert",
    "BertConfig",
    "GPTConfig",
    "LanguageModelNetwork",
    "ModelConfig",
    "build",
]
