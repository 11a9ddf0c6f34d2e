"""What `transformers` calls the tensors of BERT, RoBERTa, DistilBERT and ModernBERT.

Keys are our modules, values theirs; `*` is the number of a layer. Queries, keys and values are one
matrix here, so where theirs are three the value is a tuple, in that order along the first
dimension. A sequence head's modules stand under `sequence_head`.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from firth.errors import UnsupportedError
from firth.interop.files import read_tensors

logger = logging.getLogger(__name__)

Names = dict[str, str | tuple[str, ...]]


def _post_norm(prefix: str) -> Names:
    """The encoder that BERT and RoBERTa share."""
    layer = f"{prefix}.encoder.layer.*"
    return {
        "embeddings.tokens": f"{prefix}.embeddings.word_embeddings",
        "embeddings.positions": f"{prefix}.embeddings.position_embeddings",
        "embeddings.segments": f"{prefix}.embeddings.token_type_embeddings",
        "embeddings.norm": f"{prefix}.embeddings.LayerNorm",
        "layers.*.attention.qkv": tuple(
            f"{layer}.attention.self.{part}" for part in ("query", "key", "value")
        ),
        "layers.*.attention.out": f"{layer}.attention.output.dense",
        "layers.*.attention_norm": f"{layer}.attention.output.LayerNorm",
        "layers.*.feed_forward.up": f"{layer}.intermediate.dense",
        "layers.*.feed_forward.down": f"{layer}.output.dense",
        "layers.*.feed_forward_norm": f"{layer}.output.LayerNorm",
    }


NAMES: dict[str, Names] = {
    "bert": {
        **_post_norm("bert"),
        "pooler": "bert.pooler.dense",
        "pair_head": "cls.seq_relationship",
        "head": "cls.predictions",
        "head.dense": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "sequence_head.dense": "bert.pooler.dense",
        "sequence_head.out": "classifier",
    },
    "roberta": {
        **_post_norm("roberta"),
        "head": "lm_head",
        "head.dense": "lm_head.dense",
        "head.norm": "lm_head.layer_norm",
        "sequence_head.dense": "classifier.dense",
        "sequence_head.out": "classifier.out_proj",
    },
    "distilbert": {
        "embeddings.tokens": "distilbert.embeddings.word_embeddings",
        "embeddings.positions": "distilbert.embeddings.position_embeddings",
        "embeddings.norm": "distilbert.embeddings.LayerNorm",
        "layers.*.attention.qkv": (
            "distilbert.transformer.layer.*.attention.q_lin",
            "distilbert.transformer.layer.*.attention.k_lin",
            "distilbert.transformer.layer.*.attention.v_lin",
        ),
        "layers.*.attention.out": "distilbert.transformer.layer.*.attention.out_lin",
        "layers.*.attention_norm": "distilbert.transformer.layer.*.sa_layer_norm",
        "layers.*.feed_forward.up": "distilbert.transformer.layer.*.ffn.lin1",
        "layers.*.feed_forward.down": "distilbert.transformer.layer.*.ffn.lin2",
        "layers.*.feed_forward_norm": "distilbert.transformer.layer.*.output_layer_norm",
        "head": "vocab_projector",
        "head.dense": "vocab_transform",
        "head.norm": "vocab_layer_norm",
        "sequence_head.dense": "pre_classifier",
        "sequence_head.out": "classifier",
    },
    "modernbert": {
        "embeddings.tokens": "model.embeddings.tok_embeddings",
        "embeddings.norm": "model.embeddings.norm",
        "layers.*.attention.qkv": "model.layers.*.attn.Wqkv",
        "layers.*.attention.out": "model.layers.*.attn.Wo",
        "layers.*.attention_norm": "model.layers.*.attn_norm",
        "layers.*.feed_forward.up": "model.layers.*.mlp.Wi",
        "layers.*.feed_forward.down": "model.layers.*.mlp.Wo",
        "layers.*.feed_forward_norm": "model.layers.*.mlp_norm",
        "final_norm": "model.final_norm",
        "head": "decoder",
        "head.dense": "head.dense",
        "head.norm": "head.norm",
        "sequence_head.dense": "head.dense",
        "sequence_head.norm": "head.norm",
        "sequence_head.out": "classifier",
    },
}

PREFIXES = {
    "bert": "bert.",
    "roberta": "roberta.",
    "distilbert": "distilbert.",
    "modernbert": "model.",
}
"""What stands before the encoder's tensors, except in a file that holds the encoder alone."""

_REPEATED = re.compile(
    r"(position_ids|token_type_ids|inv_freq|decoder\.weight|vocab_projector\.weight"
    r"|(predictions|lm_head)\.decoder\.bias)$"
)
"""Tensors that follow from the settings, the output matrix (the input's), a bias's second name."""

_OUTPUT = re.compile(
    r"(decoder\.weight|vocab_projector\.weight|(predictions|lm_head)\.decoder\.bias)$"
)
"""Those of them that files hold as parameters, so that a file may have other numbers there."""

_UNUSED = re.compile(r"^roberta\.pooler\.")
"""RoBERTa's pooler, which nothing trains."""


def stock_names(family: str, parameter: str) -> tuple[str, ...]:
    """Their name, or three names, for our `parameter` (``layers.3.attention.qkv.weight``)."""
    return expand(NAMES[family], parameter)


def expand(table: Names, parameter: str) -> tuple[str, ...]:
    """The names that a table gives a parameter's tensor or its parts."""
    module, _, leaf = parameter.rpartition(".")
    number = ""
    if found := re.search(r"(?:^|\.)layers\.(\d+)\.", module):
        number = found[1]
        module = f"{module[: found.start(1)]}*{module[found.end(1) :]}"
    names = table[module]
    names = (names,) if isinstance(names, str) else names
    return tuple(f"{name.replace('*', number)}.{leaf}" for name in names)


def canonical_names(family: str, names: Iterable[str]) -> dict[str, str]:
    """Each name of a file, in the form of `NAMES`.

    A file of the encoder alone has no prefix, and old files call the norms' parameters gamma and
    beta, as TensorFlow does.
    """
    prefix = PREFIXES[family]
    names = list(names)
    missing = "" if any(name.startswith(prefix) for name in names) else prefix
    return {
        name: missing
        + name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        )
        for name in names
    }


def known_tensors(family: str, directory: Path) -> dict[str, Tensor]:
    """The tensors by their full names, less those that repeat others or are not used.

    Raises:
        UnsupportedError: if an output matrix or bias is there twice, and not the same.
    """
    tensors = read_tensors(directory)
    known, unused = {}, []
    for name, full in canonical_names(family, tensors).items():
        if _UNUSED.search(full):
            unused.append(name)
        elif not _REPEATED.search(full):
            known[full] = tensors[name]
    for name, full in canonical_names(family, tensors).items():
        if _OUTPUT.search(full) and (original := _original(family, full)) != full:
            refuse_another(
                name, tensors[name], known.setdefault(original, tensors[name]), directory
            )
    if unused:
        logger.info("%s: not used: %s", directory, ", ".join(sorted(unused)))
    return known


def _original(family: str, output: str) -> str:
    """The tensor that an output's matrix or bias repeats."""
    if output.endswith("bias"):
        return output.replace(".decoder.bias", ".bias")
    return stock_names(family, "embeddings.tokens.weight")[0]


def refuse_another(name: str, tensor: Tensor, original: Tensor, directory: Path) -> None:
    """Refuses a tensor that should repeat another one and does not.

    Raises:
        UnsupportedError: if it does not.
    """
    if tensor.shape != original.shape or not torch.equal(tensor, original):
        raise UnsupportedError(
            f"{directory}: {name} has numbers of its own, and models here share them with the "
            "embeddings or the head; to keep the encoder alone, load it with "
            "transformers.AutoModel, and save it"
        )
