"""Going on from a trained model instead of from random weights."""

from torch import nn

from firth.api.language_model import LanguageModel
from firth.errors import ConfigError
from firth.text.tokenizers import Tokenizer


def own_tokenizer(start: LanguageModel, name: str) -> Tokenizer:
    """The tokenizer of a model to go on from.

    Raises:
        ConfigError: if it has no tokens of text, or more than the model.
    """
    tokenizer, rows = start.tokenizer, start.model.config.vocab_size
    size, special = tokenizer.vocabulary.size, len(tokenizer.vocabulary.special)
    if size <= special or size > rows:
        raise ConfigError(
            f"training cannot go on from {name}: its tokenizer has {size} tokens, {special} of "
            f"them special, and the model {rows}; a published ELMo has no words, only characters"
        )
    return tokenizer


def copy_weights(start: nn.Module, model: nn.Module) -> None:
    """All of them but a pooler that the objective has no use for."""
    kept = model.state_dict().keys()
    pooler = ("pooler.weight", "pooler.bias")
    state = {n: w for n, w in start.state_dict().items() if n in kept or n not in pooler}
    model.load_state_dict(state)
