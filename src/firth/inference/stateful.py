"""Hidden states of texts that are read one after another, as a recurrent network goes along."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from firth.device import computing
from firth.errors import UnsupportedError
from firth.inference.forward import Engine, evaluating
from firth.models import AWDLSTM, Elmo
from firth.text.batches import collate


def stateful_states(engine: Engine, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Every layer's states, each text begun in the state in which the one before it ended.

    ELMo's backward network, too, goes on from where it ended: at the beginning of the text before,
    as its authors' program does.

    Args:
        engine: with a recurrent model.
        texts: the ids of each, in the order of reading.

    Returns:
        One (L+1, tokens, D) float32 array a text.

    Raises:
        UnsupportedError: if the model carries no state.
    """
    model, state, found = engine.model, None, []
    if not isinstance(model, Elmo | AWDLSTM):
        raise UnsupportedError(
            "stateful is for recurrent models (elmo, awd-lstm); this one reads each text by itself"
        )
    for i, ids in enumerate(texts):
        batch = collate([ids]).to(engine.device)
        fast = computing(engine.dtype, engine.device)
        with evaluating(model), torch.inference_mode(), fast:
            output: Any
            if isinstance(model, Elmo):
                output, state = model.run(batch, state, hidden_states=True)
            else:
                output = model(replace(batch, continues=i > 0), hidden_states=True)
            found.append(torch.stack(output.hidden_states).float().cpu().numpy())
    return found
