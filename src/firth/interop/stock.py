"""Which shapes `transformers` has a class for, and the same shape in the settings of both sides."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from firth.errors import CheckpointError, UnsupportedError
from firth.interop.decoders import tell_of_rates
from firth.interop.generators import is_stock_generator
from firth.models import EncoderDecoderConfig, GPTConfig, ModelConfig
from firth.models.bert import BertConfig
from firth.models.mix import Pooling, SequenceHead
from firth.protocols import Vocabulary

ARCHITECTURES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "modernbert": "ModernBert",
}
"""Family (their `model_type`) to the beginning of its class names."""

ALIASES = {"xlm-roberta": "roberta", "camembert": "roberta"}
"""Model types that are another family under a second name."""

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
_POST_NORM = {**_SIZES, "num_segments": "type_vocab_size", "norm_eps": "layer_norm_eps"}
_FIELDS: dict[str, dict[str, str]] = {
    "bert": _POST_NORM,
    "roberta": _POST_NORM,
    "distilbert": {
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
    "modernbert": {**_SIZES, "norm_eps": "norm_eps"},
}
"""Our fields and their keys."""

_DROPOUTS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "distilbert": ("dropout", "attention_dropout"),
    "modernbert": ("mlp_dropout", "attention_dropout", "embedding_dropout"),
}
"""Their rates, all of which are one here: the first."""

_FIXED: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    "distilbert": {"activation": "gelu", "tie_word_embeddings": True},
    "modernbert": {
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "tie_word_embeddings": True,
    },
}
_FIXED["roberta"] = _FIXED["bert"]
"""Keys that have one value here; another one in a file cannot be read."""

_DISTILBERT_EPS = 1e-12  # a constant in their code, no setting


def stock_family(config: ModelConfig) -> str | None:
    """The `transformers` family of encoders that computes what this shape computes.

    Returns:
        "bert", "roberta" (positions with an offset), "distilbert" (no segments), "modernbert"
        (pre-norm, rotary, gated, no biases), or None where there is none.
    """
    if not isinstance(config, BertConfig) or config.activation != "gelu":
        return None
    if config.norm == "pre":
        modern = config.positions == "rotary" and config.gated and not config.bias
        return "modernbert" if modern and config.num_segments == 0 else None
    windowed = config.local_window > 0
    if config.positions != "learned" or config.gated or not config.bias or windowed:
        return None
    if config.num_segments > 0:
        return "roberta" if config.position_offset > 0 else "bert"
    distilled = config.position_offset == 0 and config.norm_eps == _DISTILBERT_EPS
    return "distilbert" if distilled else None


def loads_in_transformers(
    config: ModelConfig, head: SequenceHead | None, vocabulary: Vocabulary
) -> bool:
    """Whether `save_model` writes a directory that a stock class of `transformers` loads.

    The shape must be a stock one, the head (if any) its family's own, and for RoBERTa, where
    positions start after the id of the padding token, that id must be `position_offset` - 1.
    """
    if not isinstance(config, BertConfig):
        return head is None and is_stock_generator(config)
    family = stock_family(config)
    if family is None:
        return False
    if family == "roberta" and vocabulary.pad != config.position_offset - 1:
        return False
    if head is None:
        return True
    ours = head_settings(head)
    poolings = ("first", "mean") if family == "modernbert" else ("first",)
    same = all(ours[key] == value for key, value in _head_form(config).items())
    return same and ours["pooling"] in poolings


def stock_head(
    config: ModelConfig, num_outputs: int, dropout: float, *, pooling: Pooling = "first"
) -> SequenceHead:
    """The sequence head that the family of `config` has in `transformers`, with fresh weights.

    BERT and RoBERTa: tanh; DistilBERT: ReLU; ModernBERT: GELU, a norm, no dense bias. A shape of
    no family gets BERT's head, or ModernBERT's if it is pre-norm. In training RoBERTa's has one
    dropout more, before the dense layer, which ours has not.
    """
    form = _head_form(config)
    return SequenceHead(config.hidden_size, num_outputs, dropout=dropout, pooling=pooling, **form)


def _head_form(config: ModelConfig) -> dict[str, Any]:
    if isinstance(config, BertConfig | GPTConfig | EncoderDecoderConfig) and config.norm == "pre":
        return {"activation": "gelu", "norm_eps": config.norm_eps, "dense_bias": False}
    activation = "relu" if stock_family(config) == "distilbert" else "tanh"
    return {"activation": activation, "norm_eps": None, "dense_bias": True}


def head_settings(head: SequenceHead) -> dict[str, Any]:
    """The arguments that build a head of this form again."""
    return {
        "size": head.dense.in_features,
        "num_outputs": head.out.out_features,
        "activation": head.activation,
        "norm_eps": None if isinstance(head.norm, nn.Identity) else head.norm.eps,
        "dense_bias": head.dense.bias is not None,
        "dropout": head.dropout.rate,
        "pooling": head.pooling,
    }


def stock_settings(family: str, config: BertConfig) -> dict[str, Any]:
    """The shape in the keys of `transformers`."""
    offset = config.position_offset if family == "roberta" else 0
    settings = {theirs: getattr(config, ours) for ours, theirs in _FIELDS[family].items()}
    settings |= {"max_position_embeddings": config.max_length + offset}
    settings |= dict.fromkeys(_DROPOUTS[family], config.dropout)
    settings |= _FIXED[family]
    if family == "modernbert":
        # The keys of the published checkpoints, which every version of transformers reads.
        local = config.local_window > 0
        base = config.rotary_base
        settings |= {
            "local_attention": 2 * config.local_window if local else 128,
            "global_attn_every_n_layers": config.global_every if local else 1,
            "local_rope_theta": base,
            "global_rope_theta": config.rotary_base_global if local else base,
        }
    return settings


def special_tokens(family: str, vocabulary: Vocabulary) -> dict[str, int]:
    """The ids of special tokens that the family's settings name."""
    ids = {"pad_token_id": vocabulary.pad}
    if family in ("roberta", "modernbert"):
        ids |= {"bos_token_id": vocabulary.first, "eos_token_id": vocabulary.last}
    if family == "modernbert":
        ids |= {"cls_token_id": vocabulary.first, "sep_token_id": vocabulary.last}
    return ids


def classifier_settings(family: str, head: SequenceHead) -> dict[str, Any]:
    """The head in the keys of `transformers`, labels apart."""
    key = "seq_classif_dropout" if family == "distilbert" else "classifier_dropout"
    settings: dict[str, Any] = {key: head.dropout.rate}
    if family == "modernbert":
        settings["classifier_pooling"] = {"first": "cls", "mean": "mean"}[head.pooling]
    return settings


def head_from_stock(
    family: str, config: BertConfig, settings: Mapping[str, Any], num_outputs: int
) -> SequenceHead:
    """The family's head as the settings of `transformers` describe it."""
    key = "seq_classif_dropout" if family == "distilbert" else "classifier_dropout"
    rate = settings.get(key)
    mean = family == "modernbert" and settings.get("classifier_pooling") == "mean"
    return stock_head(
        config,
        num_outputs,
        config.dropout if rate is None else float(rate),
        pooling="mean" if mean else "first",
    )


def config_from_stock(family: str, settings: Mapping[str, Any], *, where: str) -> BertConfig:
    """The shape from the settings of `transformers`.

    Raises:
        UnsupportedError: if a setting has a value that no `BertConfig` expresses.
        CheckpointError: if a setting that has no default is missing.
    """
    for key, value in _FIXED[family].items():
        found = settings.get(key, value)
        if found != value:
            raise UnsupportedError(f"{where}: {key} is {found!r}; supported: {value!r}")
    needed = [*_FIELDS[family].values(), "max_position_embeddings"]
    needed += ["pad_token_id"] if family == "roberta" else []
    missing = [key for key in needed if key not in settings]
    if missing:
        raise CheckpointError(f"{where}: no {', '.join(missing)}; {family} needs it to be read")
    fields = {ours: settings[theirs] for ours, theirs in _FIELDS[family].items()}
    offset = settings["pad_token_id"] + 1 if family == "roberta" else 0
    fields |= {"max_length": settings["max_position_embeddings"] - offset}
    fields |= {"position_offset": offset, "dropout": _one_dropout(family, settings, where)}
    if family == "distilbert":
        fields |= {"num_segments": 0, "norm_eps": _DISTILBERT_EPS}
    if family == "modernbert":
        fields |= {"num_segments": 0, "norm": "pre", "positions": "rotary"}
        fields |= {"gated": True, "bias": False, **_windows(settings, where)}
    return BertConfig(**fields)


def _one_dropout(family: str, settings: Mapping[str, Any], where: str) -> float:
    default = 0.0 if family == "modernbert" else 0.1
    given = {key: settings.get(key) for key in _DROPOUTS[family]}
    rates = {key: default if rate is None else float(rate) for key, rate in given.items()}
    used = next(iter(rates.values()))
    tell_of_rates(rates, used, where)
    return used


def _windows(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """ModernBERT's local layers and rotary bases, in the keys of transformers 4 or 5."""
    count = settings["num_hidden_layers"]
    types = settings.get("layer_types")
    every = settings.get("global_attn_every_n_layers", 3)
    if types is not None:
        everywhere = [i for i, kind in enumerate(types) if kind == "full_attention"]
        every = everywhere[1] if len(everywhere) > 1 else count
        if everywhere != list(range(0, count, every)):
            raise UnsupportedError(f"{where}: layer_types {types} is not one global layer in n")
    bases = [
        _rotary_base(settings, kind, key, default, where)
        for kind, key, default in (
            ("sliding_attention", "local_rope_theta", 10_000.0),
            ("full_attention", "global_rope_theta", 160_000.0),
        )
    ]
    if every == 1 or count == 1:
        return {"rotary_base": bases[1]}
    window = settings.get("local_attention", 128)
    if window < 2:
        raise UnsupportedError(f"{where}: local_attention is {window}, expected at least 2")
    return {
        "local_window": window // 2,
        "global_every": every,
        "rotary_base": bases[0],
        "rotary_base_global": bases[1],
    }


def _rotary_base(
    settings: Mapping[str, Any], kind: str, key: str, default: float, where: str
) -> float:
    rope = (settings.get("rope_parameters") or {}).get(kind) or {}
    form = rope.get("rope_type", "default")
    if form != "default" or settings.get("rope_scaling"):
        raise UnsupportedError(f"{where}: scaled rotary positions ({form}); supported: 'default'")
    return float(rope.get("rope_theta", settings.get(key) or default))
