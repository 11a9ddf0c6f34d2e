"""A run that is in progress or was stopped, as a model: from its last checkpoint."""

import logging
from pathlib import Path

from firth.api.language_model import LanguageModel
from firth.api.run_directory import read_recipe
from firth.device import Precision, pick_device
from firth.errors import CheckpointError
from firth.models import StaticConfig, build
from firth.text.tokenizers import Tokenizer
from firth.training.checkpoint import find, read_weights

logger = logging.getLogger(__name__)


def is_unfinished(directory: Path) -> bool:
    """Whether a directory is that of a run which has not come to its end."""
    return (directory / "recipe.json").is_file() and not (directory / "config.json").is_file()


def load_unfinished(run: Path, *, device: str, precision: Precision) -> LanguageModel:
    """The model of the last checkpoint of a run, with averaged weights where they are kept.

    Its learning rate has not been lowered yet, so it is worse than a run that was planned to end
    here.

    Raises:
        CheckpointError: if there is no checkpoint yet, or the run is one of word vectors.
    """
    path = find(run)
    if path is None:
        raise CheckpointError(
            f"{run}: training has not come to its end, nor to its first checkpoint, so there is no "
            "model yet; run the command that began it again to go on"
        )
    recipe = read_recipe(run)
    if isinstance(recipe.model, StaticConfig):
        raise CheckpointError(
            f"{run}: training has not come to its end, and word vectors are complete only there; "
            "run the command that began it again to go on"
        )
    model = build(recipe.model)
    step = read_weights(path, model)
    logger.warning(
        "%s: training is at step %d of %s; these weights are of its last checkpoint, before the "
        "learning rate has come down",
        run,
        step,
        recipe.training.steps,
    )
    record = {"recipe": recipe.name, "max_length": recipe.max_length}
    return LanguageModel(
        model.eval().to(pick_device(device)), Tokenizer.load(run), run, precision, record
    )
