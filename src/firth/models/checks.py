"""Shapes that no network has are refused where they are given."""

from collections.abc import Iterable

from firth.config import check_types
from firth.errors import ConfigError

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_heads",
    "num_groups",
    "head_size",
    "intermediate_size",
    "global_every",
    "embedding_size",
    "output_size",
    "projection_size",
    "cell_size",
    "character_dim",
    "num_layers",
    "num_decoder_layers",
)
_COUNTS = (
    "num_segments",
    "position_offset",
    "local_window",
    "boundary_places",
    "num_highway",
    "samples",
    "cell_clip",
    "projection_clip",
)
_POSITIVE = ("rotary_base", "rotary_base_global", "norm_eps")


def check_shape(config: object, rates: Iterable[tuple[str, float]] | None = None) -> None:
    """Refuses sizes below 1, counts below 0, scales that are not positive, and rates of dropout
    that are no share; and sequences of one token, which nothing follows.

    Args:
        config: of a model.
        rates: of dropout, by name; by default the setting `dropout` alone.

    Raises:
        ConfigError: for one of them.
    """
    check_types(config)
    settings = {name: value for name, value in vars(config).items() if value is not None}
    for names, least in ((_SIZES, 1), (("max_length",), 2), (_COUNTS, 0)):
        for name in names:
            if settings.get(name, least) < least:
                raise ConfigError(f"{name} is {settings[name]}, expected at least {least}")
    for name in _POSITIVE:
        if not settings.get(name, 1.0) > 0:
            raise ConfigError(f"{name} is {settings[name]:g}, expected more than 0")
    for name, rate in [("dropout", settings["dropout"])] if rates is None else rates:
        if not 0 <= rate < 1:
            raise ConfigError(f"{name} is {rate:g}, expected a share: at least 0 and below 1")
