"""Loading the models that verbs work on."""

from typing import Any

from firth.api import AdaptedModel, LanguageModel, load
from firth.errors import ConfigError


def language_model(path: str, **how: Any) -> LanguageModel:
    """Loads a language model.

    Raises:
        ConfigError: if it has been adapted to a task.
    """
    model = load(path, **how)
    if not isinstance(model, LanguageModel):
        raise ConfigError(
            f"{path} is a model of a task ({type(model.task).__name__.lower()}); give the language "
            "model that it was made from"
        )
    return model


def adapted_model(path: str, **how: Any) -> AdaptedModel:
    """Loads a model that has been adapted to a task.

    Raises:
        ConfigError: if it has not.
    """
    model = load(path, **how)
    if not isinstance(model, AdaptedModel):
        raise ConfigError(
            f"{path} is a language model without a task; run `firth adapt` first (firth evaluate "
            "also takes --suite, and of an encoder-decoder --target)"
        )
    return model
