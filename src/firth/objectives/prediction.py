"""The loss that all token-predicting objectives share."""

from typing import Any

from firth.protocols import Batch, Loss


def cross_entropy(model: Any, batch: Batch, **settings: Any) -> Loss:
    """Summed cross-entropy of the targets at the predicted positions, weighted where it says so.

    The head runs nowhere else.

    Args:
        model: gives states of (N) tokens, and the loss of (M, D) states.
        batch: with `predict_at` and `targets` (M).
        settings: of the model's `prediction_loss`, such as `label_smoothing`.
    """
    assert batch.predict_at is not None
    assert batch.targets is not None
    if batch.weights is not None:
        settings["weights"] = batch.weights
    hidden = model(batch).last.index_select(0, batch.predict_at)  # (M, D)
    return Loss(model.prediction_loss(hidden, batch.targets, **settings), batch.num_predictions)
