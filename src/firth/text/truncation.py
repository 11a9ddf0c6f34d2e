"""Cutting what is encoded to a number of tokens."""

import numpy as np
from tokenizers import Tokenizer as Backend

from firth.errors import ConfigError


def check_length(max_length: int | None, num_special: int) -> None:
    """Refuses a length that the special tokens of a sequence alone go beyond.

    Raises:
        ConfigError: if this is such a length.
    """
    if max_length is not None and max_length < num_special:
        raise ConfigError(
            f"max_length is {max_length}, and the special tokens of a sequence alone are "
            f"{num_special}; give at least {num_special}, and more to have text in it"
        )


def truncating(backend: Backend, max_length: int) -> Backend:
    """A tokenizer of the same parts that cuts at this length, the longer text of a pair first.

    The one that is given stays as it is: it may be encoding in another thread. Parts are shared, so
    this takes no memory to speak of.
    """
    cutting = Backend(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (found := getattr(backend, part)) is not None:
            setattr(cutting, part, found)
    added = sorted(backend.get_added_tokens_decoder().items())
    cutting.add_tokens([token for _, token in added])
    cutting.enable_truncation(max_length, strategy="longest_first")
    return cutting


def cut_pair(
    first: np.ndarray, second: np.ndarray, room: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Two texts, the longer one cut until both fit into `room` tokens (Devlin et al. 2019, A.2)."""
    if room is None or len(first) + len(second) <= room:
        return first, second
    shorter = min(len(first), len(second), room // 2)
    if len(first) > len(second):
        return first[: room - shorter], second[:shorter]
    return first[:shorter], second[: room - shorter]
