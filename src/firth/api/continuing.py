"""Going on from a trained model instead of from random weights."""

import logging

from torch import nn

from firth.api.language_model import LanguageModel
from firth.errors import ConfigError
from firth.text.tokenizers import Tokenizer

logger = logging.getLogger(__name__)


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


_HEADS = ("pooler.", "pair_head.", "boundary_head.")


def copy_weights(start: nn.Module, model: nn.Module) -> None:
    """All but those of heads that one of both has not: the model's own begin at random, the others
    are left behind.
    """
    state, kept = start.state_dict(), model.state_dict()
    shared = {n: w for n, w in state.items() if n in kept or not n.startswith(_HEADS)}
    fresh = {n: w for n, w in kept.items() if n not in state and n.startswith(_HEADS)}
    model.load_state_dict({**shared, **fresh})
    for names, what in (
        (fresh, "not in the model to go on from, begins at random"),
        (state.keys() - shared.keys(), "left behind, since the objective has no use for it"),
    ):
        if heads := sorted({name.split(".")[0] for name in names}):
            logger.info("%s: %s", ", ".join(heads), what)
