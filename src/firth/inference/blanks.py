"""Where each kind of model predicts a blank from."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from firth.errors import UnsupportedError
from firth.inference.forward import Engine
from firth.models import GPT, Elmo, SourceToTarget
from firth.protocols import ABSENT, Batch, Vocabulary


def blank_token(model: nn.Module, vocabulary: Vocabulary) -> int:
    """The token that stands for a blank: the mask, or the first sentinel of an encoder-decoder.

    Raises:
        UnsupportedError: if the vocabulary has none.
    """
    if isinstance(model, SourceToTarget):
        if not vocabulary.sentinels:
            raise UnsupportedError(
                "this vocabulary has no sentinel tokens (<extra_id_0> and so on), so its model "
                "was not trained to fill blanks; it writes texts, with generate"
            )
        return vocabulary.sentinels[0]
    if vocabulary.mask == ABSENT:
        raise UnsupportedError(
            "this vocabulary has no mask token (usual names: [MASK], <mask>); if it is called "
            'otherwise, name it in tokenizer_config.json, for instance "mask_token": "[GAP]"'
        )
    return vocabulary.mask


def blank_states(model: nn.Module, batch: Batch, at: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The states that predict what stands in blanks, (M, D).

    A masked model's own state there; a hybrid's at the token before, the text read in both
    directions (Charpentier and Samuel 2024, section 2.1); of an encoder-decoder what its decoder
    says after the sentinel (Raffel et al. 2020, section 3.1.4); of a biLM the forward state before
    the blank beside the backward state behind it.

    Args:
        model: the network.
        batch: texts with blanks.
        at: (M) positions of the blanks; of an encoder-decoder one a text.
        vocabulary: of the model.
    """
    if isinstance(model, SourceToTarget):
        count = batch.num_sequences
        opening = torch.tensor([vocabulary.first, vocabulary.sentinels[0]], device=at.device)
        written = Batch(
            input_ids=opening.repeat(count), starts=2 * torch.arange(count + 1), source=batch
        )
        return model(written).last[1::2]
    if isinstance(model, Elmo):
        last = model(batch).last
        size = model.config.projection_size
        return torch.cat([last[at - 1, :size], last[at + 1, size:]], dim=1)
    if isinstance(model, GPT):
        return model(replace(batch, prefix=batch.starts.diff())).last[at - 1]
    return model(batch).last[at]


def blank_scores(engine: Engine, states: Tensor) -> Tensor:
    """(M, V) scores of the tokens for blanks, from their `blank_states`, in float32.

    Of a biLM the sum of both directions' log probabilities: each word must suit both sides.
    """
    if isinstance(engine.model, Elmo):
        both = (engine.logits(states, backward=backward) for backward in (False, True))
        return torch.stack([torch.log_softmax(scores, dim=1) for scores in both]).sum(0)
    return engine.logits(states)
