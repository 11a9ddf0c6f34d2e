"""What training is given beside its text: a recipe, a model to go on from, a tokenizer."""

import logging

from torch import nn

from firth.api.language_model import LanguageModel
from firth.errors import ConfigError
from firth.models import BertConfig, ElmoConfig, StaticConfig
from firth.objectives import Hybrid
from firth.protocols import ABSENT
from firth.recipes import Recipe
from firth.text.tokenizers import Tokenizer
from firth.training import BUDGETS

logger = logging.getLogger(__name__)


def check_given(recipe: Recipe, start: object, tokenizer: object) -> None:
    """Refuses, before any text is read, what is no recipe or has no budget, what is no model to go
    on from, and what is no tokenizer or does not suit the recipe.

    Raises:
        ConfigError: says what to give instead.
    """
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"the recipe is {recipe!r}, expected a firth.Recipe, such as firth.recipe('bert')"
        )
    if all(getattr(recipe.training, budget) is None for budget in BUDGETS):
        raise ConfigError(f"there is no budget; give one of {', '.join(BUDGETS)}")
    if start is not None and not isinstance(start, LanguageModel):
        raise ConfigError(
            f"start is {start!r} ({type(start).__name__}), expected a language model: "
            "firth.load(DIRECTORY) of a run; of an adapted model give the run that it was made from"
        )
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise ConfigError(
            f"tokenizer is {tokenizer!r} ({type(tokenizer).__name__}), expected a firth.Tokenizer, "
            "such as firth.Tokenizer.load(DIRECTORY)"
        )
    if tokenizer is not None:
        _check_tokenizer(recipe, tokenizer)


def _check_tokenizer(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Refuses one without an opening where blanks are filled, and one of pieces where the vectors
    are of whole words.
    """
    if isinstance(recipe.model, BertConfig) or isinstance(recipe.objective, Hybrid):
        first = tokenizer.vocabulary.first
        if first != ABSENT and tokenizer.encode("a").ids[0] != first:
            raise ConfigError(
                f"the tokenizer that was given does not put {tokenizer.token(first)} before a "
                "text, as training does and the model will expect; give its tokenizer.json a "
                "post_processor (tokenizers.processors.TemplateProcessing) that does"
            )
    if isinstance(recipe.model, StaticConfig | ElmoConfig) and not tokenizer.whole_words:
        raise ConfigError(
            f"the recipe {recipe.name} is of whole words, and the tokenizer that was given cuts "
            "them into pieces; leave it out, or train one with kind='word' or 'whitespace'"
        )


def own_tokenizer(start: LanguageModel, name: str, given: Tokenizer | None = None) -> Tokenizer:
    """The tokenizer of a model to go on from.

    Raises:
        ConfigError: if it has no tokens of text, or more than the model, or another one is given.
    """
    tokenizer, rows = start.tokenizer, start.model.config.vocab_size
    if given is not None and given.content_hash != tokenizer.content_hash:
        raise ConfigError(
            f"the tokenizer given ({given.vocabulary.size} tokens) is not that of {name} "
            f"({tokenizer.vocabulary.size} tokens), whose weights are of its own tokens; leave it "
            "out, or leave the start out"
        )
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
