"""T5, v1.0 and v1.1, in the settings and names of `transformers`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firth.config import read_json
from firth.errors import CheckpointError, UnsupportedError
from firth.interop.files import match_tensors
from firth.interop.names import Names, expand, refuse_another
from firth.models.encoder_decoder import EncoderDecoderConfig
from firth.protocols import ABSENT, Vocabulary

T5_CLASS = "T5ForConditionalGeneration"

_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "head_size": "d_kv",
    "intermediate_size": "d_ff",
    "num_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_heads": "num_heads",
    "dropout": "dropout_rate",
    "norm_eps": "layer_norm_epsilon",
    "distance_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
}
"""Our fields and their keys."""

_DEFAULTS = {
    "num_decoder_layers": None,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
}
"""Keys that a file may leave out."""

_FEED_FORWARD: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu", "gated": False},
    "gated-gelu": {"activation": "gelu_tanh", "gated": True},
    "gated-silu": {"activation": "silu", "gated": True},
}
"""Their `feed_forward_proj`: that of v1.0, of v1.1, and one of later models."""

_ACTIVATIONS = {"relu": "relu", "gated-gelu": "gelu_new", "gated-silu": "silu"}
"""What `transformers` makes of it; a file that names another `dense_act_fn` is heeded there."""

_SHAPE: dict[str, Any] = {
    "norm": "pre",
    "norm_kind": "rms",
    "positions": "relative",
    "bias": False,
    "scale_embeddings": False,
    "scale_scores": False,
}
"""What makes an `EncoderDecoderConfig` a T5, beside its feed-forward layers and its output."""


def _stack(name: str, feed_forward: int) -> Names:
    """The tensors of a stack; its feed-forward layer is sub-layer number `feed_forward`."""
    layer = f"{name}.block.*.layer"
    attention = f"{layer}.0.SelfAttention"
    wide = f"{layer}.{feed_forward}.DenseReluDense"
    return {
        f"{name}.layers.*.attention_norm": f"{layer}.0.layer_norm",
        f"{name}.layers.*.attention.qkv": (f"{attention}.q", f"{attention}.k", f"{attention}.v"),
        f"{name}.layers.*.attention.out": f"{attention}.o",
        f"{name}.layers.*.feed_forward_norm": f"{layer}.{feed_forward}.layer_norm",
        f"{name}.layers.*.feed_forward.up": f"{wide}.wi",
        f"{name}.layers.*.feed_forward.down": f"{wide}.wo",
        f"{name}.distances.values": (
            f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias"
        ),
        f"{name}.final_norm": f"{name}.final_layer_norm",
    }


_CROSS = "decoder.block.*.layer.1"
_NAMES: Names = {
    "embeddings.tokens": "shared",
    "head": "lm_head",
    **_stack("encoder", 1),
    **_stack("decoder", 2),
    "decoder.layers.*.cross_norm": f"{_CROSS}.layer_norm",
    "decoder.layers.*.cross.q": f"{_CROSS}.EncDecAttention.q",
    "decoder.layers.*.cross.kv": (f"{_CROSS}.EncDecAttention.k", f"{_CROSS}.EncDecAttention.v"),
    "decoder.layers.*.cross.out": f"{_CROSS}.EncDecAttention.o",
}

_TOKENS = "embed_tokens.weight"
_IDLE = (_TOKENS, ".layer.1.EncDecAttention.relative_attention_bias.weight")
"""Endings of tensors that repeat others, and of a table that old files hold and nothing reads."""


def is_t5(config: EncoderDecoderConfig) -> bool:
    """Whether `transformers` has a class that computes what this shape computes.

    In v1.0 the output matrix is the embedding matrix, and states are scaled before it; in v1.1
    neither; a v1.1 that `transformers` 5 began has that matrix, and nothing is scaled.
    """
    shape = all(getattr(config, name) == value for name, value in _SHAPE.items())
    known = shape and (config.tied or not config.scale_outputs)
    return known and _feed_forward(config) is not None


def _feed_forward(config: EncoderDecoderConfig) -> str | None:
    own = {"activation": config.activation, "gated": config.gated}
    return next((name for name, shape in _FEED_FORWARD.items() if shape == own), None)


def t5_settings(config: EncoderDecoderConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """`config.json` in the keys of `transformers`."""
    fields = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    return {
        "architectures": [T5_CLASS],
        "model_type": "t5",
        "dtype": "float32",
        **fields,
        "d_kv": config.size_of_head,
        "num_decoder_layers": config.depth[1],
        "feed_forward_proj": _feed_forward(config),
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": config.scale_outputs,
        "n_positions": config.max_length,
        "decoder_start_token_id": vocabulary.first,
        "eos_token_id": vocabulary.last,
        "pad_token_id": vocabulary.first if vocabulary.pad == ABSENT else vocabulary.pad,
    }


def config_from_t5(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], *, where: str
) -> EncoderDecoderConfig:
    """The shape from the settings of `transformers`, and from whether there is an output matrix.

    Raises:
        UnsupportedError: if a setting has a value that no `EncoderDecoderConfig` expresses.
        CheckpointError: if a setting that has no default is missing.
    """
    known = {**_DEFAULTS, **settings}
    if missing := [key for key in _FIELDS.values() if key not in known]:
        raise CheckpointError(f"{where}: no {', '.join(missing)}; t5 needs it to be read")
    form = known["feed_forward_proj"]
    if form not in _FEED_FORWARD:
        raise UnsupportedError(
            f"{where}: feed_forward_proj is {form!r}; supported: {', '.join(_FEED_FORWARD)}"
        )
    implied = {"dense_act_fn": _ACTIVATIONS[form], "is_gated_act": _FEED_FORWARD[form]["gated"]}
    for key, value in implied.items():
        if settings.get(key, value) != value:
            raise UnsupportedError(
                f"{where}: {key} is {settings[key]!r} beside feed_forward_proj {form!r}, which is "
                f"supported with {value!r} alone"
            )
    if settings.get("tie_word_embeddings") is False and "lm_head.weight" not in tensors:
        raise CheckpointError(
            f"{where}: the settings say that the output matrix is one of its own, and there is no "
            "lm_head.weight; save the model with its head (T5ForConditionalGeneration)"
        )
    fields = {ours: known[theirs] for ours, theirs in _FIELDS.items()}
    if fields["num_decoder_layers"] == fields["num_layers"]:
        fields["num_decoder_layers"] = None
    if fields["head_size"] * fields["num_heads"] == fields["hidden_size"]:
        fields["head_size"] = None
    scaled = settings.get("scale_decoder_outputs")
    if scaled is None:
        scaled = settings.get("tie_word_embeddings") is not False
    return EncoderDecoderConfig(
        **{**_SHAPE, **_FEED_FORWARD[form], **fields},
        max_length=settings.get("n_positions", 512),
        tied=_output_is_embedding(tensors),
        scale_outputs=bool(scaled),
    )


def check_decoder_start(directory: Path, vocabulary: Vocabulary) -> None:
    """Refuses a T5 whose decoder begins with another token than its tokenizer's first.

    Raises:
        UnsupportedError: if it does.
    """
    start = read_json(directory / "config.json").get("decoder_start_token_id")
    if start is not None and start != vocabulary.first:
        raise UnsupportedError(
            f"{directory}: the decoder begins with token {start} (decoder_start_token_id), and a "
            f"text of its tokenizer with {vocabulary.first}; models where they differ are not read"
        )


def _output_is_embedding(tensors: Mapping[str, Tensor]) -> bool:
    head, shared = tensors.get("lm_head.weight"), tensors.get("shared.weight")
    return head is None or (shared is not None and torch.equal(head, shared))


def t5_tensors(config: EncoderDecoderConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors by their names in `transformers`."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = _names(config, name)
        parts = [part.clone() for part in tensor.chunk(len(names))]
        tensors |= zip(names, parts, strict=True)
    return tensors


def state_from_t5(
    config: EncoderDecoderConfig,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    where: Path,
) -> dict[str, Tensor]:
    """The tensors of a file by our names, for a model whose (meta) tensors are `state`.

    Raises:
        CheckpointError: if tensors are missing, unexpected or of another shape.
        UnsupportedError: if encoder and decoder have embeddings of their own.
    """
    for stack in ("encoder", "decoder"):
        repeated = f"{stack}.{_TOKENS}"
        if repeated in tensors and "shared.weight" in tensors:
            refuse_another(repeated, tensors[repeated], tensors["shared.weight"], where)
    known = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(_IDLE) and not (config.tied and name == "lm_head.weight")
    }
    names = {name: _names(config, name) for name in state}
    shapes = {name: tensor.shape for name, tensor in state.items()}
    return match_tensors(known, names, shapes, where=where)


def _names(config: EncoderDecoderConfig, parameter: str) -> tuple[str, ...]:
    """Theirs of one of ours; a gated layer's first matrix is two there."""
    (*_, last) = names = expand(_NAMES, parameter)
    if config.gated and last.endswith("DenseReluDense.wi.weight"):
        return tuple(last.replace(".wi.", f".wi_{i}.") for i in (0, 1))
    return names
