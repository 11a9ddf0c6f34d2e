"""One function per system: a resolved recipe, citing its paper and listing departures."""

from typing import Any

from firth.config import suggest
from firth.errors import ConfigError
from firth.recipes.decoders import gpt, gpt1, gpt2, hybrid
from firth.recipes.encoder_decoders import seq2seq, t5, transformer
from firth.recipes.encoders import bert, bert_nsp, modern_bert, roberta, spanbert
from firth.recipes.recurrent import awd_lstm, awd_lstm_2018, elmo, ulmfit
from firth.recipes.settings import Recipe
from firth.recipes.static import fasttext, glove, word2vec
from firth.recipes.text_settings import DataSettings, TokenizerSettings

RECIPES = {
    "bert": bert,
    "bert-nsp": bert_nsp,
    "roberta": roberta,
    "spanbert": spanbert,
    "modern-bert": modern_bert,
    "gpt": gpt,
    "gpt1": gpt1,
    "gpt2": gpt2,
    "hybrid": hybrid,
    "seq2seq": seq2seq,
    "transformer": transformer,
    "t5": t5,
    "elmo": elmo,
    "awd-lstm": awd_lstm,
    "awd-lstm-2018": awd_lstm_2018,
    "ulmfit": ulmfit,
    "word2vec": word2vec,
    "glove": glove,
    "fasttext": fasttext,
}
"""Name of a system to its recipe."""


def recipe(name: str, **arguments: Any) -> Recipe:
    """The recipe called `name`.

    Args:
        name: one of `RECIPES`.
        arguments: `size` and `vocab_size`; where they are left out or None, the recipe's own.

    Raises:
        ConfigError: if there is none of this name.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {suggest(name, RECIPES)}")
    return RECIPES[name](**{key: value for key, value in arguments.items() if value is not None})


__all__ = ["RECIPES", "DataSettings", "Recipe", "TokenizerSettings", "recipe"]
