"""Networks that give every layer's hidden states."""

from firth.models.bert import SIZES, Bert, BertConfig
from firth.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from firth.models.gpt import GPT, GPTConfig

ModelConfig = BertConfig | GPTConfig | EncoderDecoderConfig
LanguageModelNetwork = Bert | GPT | EncoderDecoder

MODELS: dict[str, tuple[type[ModelConfig], type[LanguageModelNetwork]]] = {
    "BertConfig": (BertConfig, Bert),
    "GPTConfig": (GPTConfig, GPT),
    "EncoderDecoderConfig": (EncoderDecoderConfig, EncoderDecoder),
}
"""Name of a configuration to its class and its network."""


def build(config: ModelConfig, *, pooler: bool = False) -> LanguageModelNetwork:
    """A network of this shape with fresh weights; `pooler` is BERT's."""
    if isinstance(config, BertConfig):
        return Bert(config, pooler=pooler)
    return GPT(config) if isinstance(config, GPTConfig) else EncoderDecoder(config)


__all__ = [
    "GPT",
    "MODELS",
    "SIZES",
    "Bert",
    "BertConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "GPTConfig",
    "LanguageModelNetwork",
    "ModelConfig",
    "build",
]
