"""GPT-2 and Llama-type decoders in the settings and names of `transformers`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firth.errors import CheckpointError, UnsupportedError
from firth.interop.files import match_tensors
from firth.interop.names import Names, expand
from firth.models.gpt import GPTConfig
from firth.protocols import ABSENT, Vocabulary

logger = logging.getLogger(__name__)

DECODERS = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
"""Family (their `model_type`) to its class with a language-model head."""

_FIELDS: dict[str, dict[str, str]] = {
    "gpt2": {
        "vocab_size": "vocab_size",
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "max_length": "n_positions",
        "dropout": "resid_pdrop",
        "norm_eps": "layer_norm_epsilon",
        "tied": "tie_word_embeddings",
    },
    "llama": {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_groups": "num_key_value_heads",
        "head_size": "head_dim",
        "intermediate_size": "intermediate_size",
        "max_length": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "tied": "tie_word_embeddings",
    },
}
"""Our fields and their keys."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": None, "resid_pdrop": 0.1, "tie_word_embeddings": True},
    "llama": {"head_dim": None, "num_key_value_heads": None, "tie_word_embeddings": False},
}
"""Keys that a file may leave out."""

_DROPOUTS = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
}
"""What `transformers` has several rates for."""

_FIXED: dict[str, dict[str, Any]] = {
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "is_causal": True,
    },
    "llama": {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "is_causal": True,
    },
}
"""Keys that have one value here; another one in a file cannot be read."""

_SHAPE: dict[str, dict[str, Any]] = {
    "gpt2": {"activation": "gelu_tanh"},
    "llama": {
        "activation": "silu",
        "gated": True,
        "norm_kind": "rms",
        "positions": "rotary",
        "bias": False,
        "dropout": 0.0,
        "output_init": "plain",
    },
}
"""What makes a `GPTConfig` one of the family, beside its defaults."""

_NAMES: dict[str, Names] = {
    "gpt2": {
        "embeddings.tokens": "transformer.wte",
        "embeddings.positions": "transformer.wpe",
        "layers.*.attention_norm": "transformer.h.*.ln_1",
        "layers.*.attention.qkv": "transformer.h.*.attn.c_attn",
        "layers.*.attention.out": "transformer.h.*.attn.c_proj",
        "layers.*.feed_forward_norm": "transformer.h.*.ln_2",
        "layers.*.feed_forward.up": "transformer.h.*.mlp.c_fc",
        "layers.*.feed_forward.down": "transformer.h.*.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    "llama": {
        "embeddings.tokens": "model.embed_tokens",
        "layers.*.attention_norm": "model.layers.*.input_layernorm",
        "layers.*.attention.qkv": (
            "model.layers.*.self_attn.q_proj",
            "model.layers.*.self_attn.k_proj",
            "model.layers.*.self_attn.v_proj",
        ),
        "layers.*.attention.out": "model.layers.*.self_attn.o_proj",
        "layers.*.feed_forward_norm": "model.layers.*.post_attention_layernorm",
        "layers.*.feed_forward.up": (
            "model.layers.*.mlp.gate_proj",
            "model.layers.*.mlp.up_proj",
        ),
        "layers.*.feed_forward.down": "model.layers.*.mlp.down_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    },
}

_PREFIX = {"gpt2": "transformer.", "llama": "model."}
"""What stands before the decoder's tensors, except in a file that holds the decoder alone."""

_IDLE = {
    "gpt2": (".attn.bias", ".attn.masked_bias"),
    "llama": (".rotary_emb.inv_freq",),
}
"""Endings of tensors that follow from the settings."""

_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
"""GPT-2's matrices stand (inputs, outputs)."""


def decoder_family(config: GPTConfig) -> str | None:
    """The `transformers` family that computes what this shape computes, or None."""
    same = {
        "qk_norm": False,
        "embedding_norm": False,
        "norm": "pre",
        "bidirectional": False,
        "whole_prompts": False,
    }
    if any(getattr(config, name) != value for name, value in same.items()):
        return None
    gpt2 = {"norm_kind": "layer", "positions": "learned", "bias": True, "gated": False}
    gpt2 |= {"num_groups": None, "head_size": None, **_SHAPE["gpt2"]}
    shapes = {"gpt2": gpt2, "llama": {**_SHAPE["llama"]}}
    shapes["llama"].pop("output_init")
    if config.hidden_size % config.num_heads:  # which `transformers` refuses of either
        return None
    for family, shape in shapes.items():
        if all(getattr(config, name) == value for name, value in shape.items()):
            return family
    return None


def decoder_settings(family: str, config: GPTConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """`config.json` in the keys of `transformers`."""
    settings: dict[str, Any] = {
        "architectures": [DECODERS[family]],
        "model_type": family,
        "dtype": "float32",
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS[family].items()},
        **_FIXED[family],
        "bos_token_id": vocabulary.first,
        "eos_token_id": vocabulary.last,
        "pad_token_id": None if vocabulary.pad == ABSENT else vocabulary.pad,
    }
    if family == "gpt2":
        settings |= {"n_inner": config.intermediate_size}
        settings |= dict.fromkeys(("embd_pdrop", "attn_pdrop"), config.dropout)
    else:
        settings |= {"num_key_value_heads": config.num_groups or config.num_heads}
        settings |= {"head_dim": config.size_of_head, "rope_theta": config.rotary_base}
        settings |= {"rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base}}
    return settings


def config_from_decoder(family: str, settings: Mapping[str, Any], *, where: str) -> GPTConfig:
    """The shape from the settings of `transformers`.

    Raises:
        UnsupportedError: if a setting has a value that no `GPTConfig` expresses.
        CheckpointError: if a setting that has no default is missing.
    """
    for key, value in _FIXED[family].items():
        if (found := settings.get(key)) not in (value, None):
            raise UnsupportedError(f"{where}: {key} is {found!r}; supported: {value!r}")
    known = {**_DEFAULTS[family], **settings}
    missing = [key for key in _FIELDS[family].values() if key not in known]
    if missing:
        raise CheckpointError(f"{where}: no {', '.join(missing)}; {family} needs it to be read")
    fields = {ours: known[theirs] for ours, theirs in _FIELDS[family].items()}
    used = float(fields.get("dropout", 0.0))
    given = {key: settings.get(key) for key in _DROPOUTS[family]}
    rates = {key: used if rate is None else float(rate) for key, rate in given.items()}
    tell_of_rates(rates, used, where)
    if family == "gpt2":
        inner = known["n_inner"]
        fields |= {"intermediate_size": 4 * known["n_embd"] if inner is None else inner}
    else:
        fields |= {"rotary_base": _rotary_base(settings, where)}
        if fields["num_groups"] == fields["num_heads"]:
            fields["num_groups"] = None
        if fields["head_size"] == fields["hidden_size"] // fields["num_heads"]:
            fields["head_size"] = None
    return GPTConfig(**{**_SHAPE[family], **fields})


def tell_of_rates(rates: Mapping[str, float], used: float, where: str) -> None:
    """Warns where not all dropout rates of a file are the one that is used."""
    if any(rate != used for rate in rates.values()):
        logger.warning("%s: dropout rates differ (%s); %g is used for all", where, rates, used)


def _rotary_base(settings: Mapping[str, Any], where: str) -> float:
    rope: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # where both are, the second one counts
        rope |= (found := settings.get(key) or {})
        form = found.get("rope_type", found.get("type", "default"))
        if form != "default":
            raise UnsupportedError(
                f"{where}: {key} is of the type {form!r}; supported: 'default', positions as they "
                "are"
            )
    return float(rope.get("rope_theta", settings.get("rope_theta") or 10_000.0))


def decoder_tensors(
    family: str, config: GPTConfig, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our tensors by their names in `transformers`."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = expand(_NAMES[family], name)
        parts = tensor.split(list(_rows(config, tensor.shape[0], len(names))))
        tensors |= {
            theirs: (part.t() if theirs.endswith(_TRANSPOSED) else part).clone(
                memory_format=torch.contiguous_format
            )
            for theirs, part in zip(names, parts, strict=True)
        }
    return tensors


def has_own_output(family: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file has an output matrix other than that of the embeddings."""
    (full,) = expand(_NAMES[family], "embeddings.tokens.weight")
    embeddings = tensors.get(full, tensors.get(full.removeprefix(_PREFIX[family])))
    head = tensors.get("lm_head.weight")
    return head is not None and embeddings is not None and not torch.equal(head, embeddings)


def state_from_decoder(
    family: str,
    config: GPTConfig,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    where: Path,
) -> dict[str, Tensor]:
    """The tensors of a file by our names, for a model whose (meta) tensors are `state`.

    Raises:
        CheckpointError: if tensors are missing, unexpected or of another shape.
    """
    prefix = _PREFIX[family]
    bare = not any(name.startswith(prefix) for name in tensors)
    found = {}
    for name, tensor in tensors.items():
        full = prefix + name if bare and not name.startswith("lm_head") else name
        repeats = config.tied and full == "lm_head.weight"
        if not repeats and not full.endswith(_IDLE[family]):
            found[full] = tensor.t() if full.endswith(_TRANSPOSED) else tensor
    names = {name: expand(_NAMES[family], name) for name in state}
    rows = {name: _rows(config, state[name].shape[0], len(parts)) for name, parts in names.items()}
    shapes = {name: tensor.shape for name, tensor in state.items()}
    return match_tensors(found, names, shapes, rows=rows, where=where)


def _rows(config: GPTConfig, rows: int, parts: int) -> tuple[int, ...]:
    """Rows of each part of a matrix: three are queries, keys and values."""
    if parts == 3:
        groups = (config.num_groups or config.num_heads) * config.size_of_head
        return (rows - 2 * groups, groups, groups)
    return (rows // parts,) * parts
