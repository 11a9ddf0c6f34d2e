"""Networks that give every layer's hidden states."""

from typing import Any

from torch import nn

from firth.models.attentive import Seq2Seq, Seq2SeqConfig
from firth.models.awd_lstm import AWDLSTM, AWDLSTMConfig
from firth.models.bert import SIZES, Bert, BertConfig
from firth.models.elmo import Elmo, ElmoConfig
from firth.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from firth.models.gpt import GPT, GPTConfig
from firth.models.static import Static, StaticConfig

ModelConfig = (
    BertConfig
    | GPTConfig
    | EncoderDecoderConfig
    | ElmoConfig
    | AWDLSTMConfig
    | Seq2SeqConfig
    | StaticConfig
)
SourceToTarget = EncoderDecoder | Seq2Seq
"""Networks whose encoder reads a source, for which their decoder writes a target."""
LanguageModelNetwork = Bert | GPT | SourceToTarget | Elmo | AWDLSTM | Static

MODELS: dict[str, tuple[type[ModelConfig], type[LanguageModelNetwork]]] = {
    "BertConfig": (BertConfig, Bert),
    "GPTConfig": (GPTConfig, GPT),
    "EncoderDecoderConfig": (EncoderDecoderConfig, EncoderDecoder),
    "ElmoConfig": (ElmoConfig, Elmo),
    "AWDLSTMConfig": (AWDLSTMConfig, AWDLSTM),
    "Seq2SeqConfig": (Seq2SeqConfig, Seq2Seq),
    "StaticConfig": (StaticConfig, Static),
}
"""Name of a configuration to its class and its network."""


def build(config: ModelConfig, *, pooler: bool = False) -> LanguageModelNetwork:
    """A network of this shape with fresh weights; `pooler` is BERT's."""
    if isinstance(config, BertConfig):
        return Bert(config, pooler=pooler)
    network: Any = MODELS[type(config).__name__][1]
    return network(config)


def described(model: nn.Module) -> str:
    """A network in a few words."""
    size = sum(p.numel() for p in model.parameters())
    return f"{type(model).__name__} of {size:,} parameters"


__all__ = [
    "AWDLSTM",
    "GPT",
    "MODELS",
    "SIZES",
    "AWDLSTMConfig",
    "Bert",
    "BertConfig",
    "Elmo",
    "ElmoConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "GPTConfig",
    "LanguageModelNetwork",
    "ModelConfig",
    "Seq2Seq",
    "Seq2SeqConfig",
    "SourceToTarget",
    "Static",
    "StaticConfig",
    "build",
    "described",
]
