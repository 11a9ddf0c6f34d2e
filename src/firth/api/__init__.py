"""The library's front door."""

from pathlib import Path

from firth.api.adapted import AdaptedModel, adapt, load_adapted
from firth.api.language_model import LanguageModel, load_language_model
from firth.api.pretraining import pretrain
from firth.device import Precision
from firth.errors import CheckpointError


def load(
    path: str | Path, *, device: str = "auto", precision: Precision = "auto"
) -> LanguageModel | AdaptedModel:
    """Loads whatever a directory holds.

    Args:
        path: a run directory, an adapted model, or a `transformers` directory (BERT, RoBERTa,
            DistilBERT, ModernBERT).
        device: "auto", "cpu", "cuda", ...
        precision: of the matrix products: bfloat16 where it is fast ("auto"), or "float32".

    Raises:
        CheckpointError: if the directory holds no model.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; expected a run or a model directory")
    kind = load_adapted if (path / "adaptation.json").is_file() else load_language_model
    return kind(path, device=device, precision=precision)


__all__ = ["AdaptedModel", "LanguageModel", "adapt", "load", "pretrain"]
