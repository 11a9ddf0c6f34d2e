"""Shapes that no network has are refused where they are given."""

from collections.abc import Iterable

from firth.errors import ConfigError

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_heads",
    "num_groups",
    "head_size",
    "intermediate_size",
    "max_length",
    "global_every",
    "embedding_size",
    "output_size",
    "projection_size",
    "cell_size",
    "character_dim",
)


def check_shape(config: object, rates: Iterable[tuple[str, float]] | None = None) -> None:
    """Refuses sizes below 1 and rates of dropout that are no share.

    Args:
        config: of a model.
        rates: of dropout, by name; by default the setting `dropout` alone.

    Raises:
        ConfigError: for one of them.
    """
    for name in _SIZES:
        size = getattr(config, name, None)
        if size is not None and size < 1:
            raise ConfigError(f"{name} is {size}, expected at least 1")
    for name, rate in [("dropout", vars(config)["dropout"])] if rates is None else rates:
        if not 0 <= rate < 1:
            raise ConfigError(f"{name} is {rate:g}, expected a share: at least 0 and below 1")
