"""Networks that give every layer's hidden states."""

from firth.models.bert import SIZES, Bert, BertConfig

MODELS = {"bert": (BertConfig, Bert)}
"""Family name to its configuration and its network."""

__all__ = ["MODELS", "SIZES", "Bert", "BertConfig"]
