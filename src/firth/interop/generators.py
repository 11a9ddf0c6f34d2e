"""Models that generate text, decoders and T5, in the directories of `transformers`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firth.config import from_dict, read_json
from firth.errors import CheckpointError, UnsupportedError
from firth.interop.decoders import (
    DECODERS,
    config_from_decoder,
    decoder_family,
    decoder_settings,
    decoder_tensors,
    has_own_output,
    state_from_decoder,
)
from firth.interop.files import read_tensors
from firth.interop.t5 import T5_CLASS, config_from_t5, is_t5, state_from_t5, t5_settings, t5_tensors
from firth.models import LanguageModelNetwork, ModelConfig, build
from firth.models.encoder_decoder import EncoderDecoderConfig
from firth.models.gpt import GPTConfig
from firth.protocols import Vocabulary

logger = logging.getLogger(__name__)

GENERATORS = {**DECODERS, "t5": T5_CLASS}
"""Family (their `model_type`) to its class with a language-model head."""

_ENDINGS = ("Model", "ForCausalLM", "ForConditionalGeneration")

END_TOKENS = "end_tokens"
"""In the record of a model: ids that close its texts, beside its tokenizer's own."""

GeneratorConfig = GPTConfig | EncoderDecoderConfig


def is_stock_generator(config: ModelConfig) -> bool:
    """Whether `transformers` has a class that computes what this shape computes."""
    if isinstance(config, EncoderDecoderConfig):
        return is_t5(config)
    return isinstance(config, GPTConfig) and decoder_family(config) is not None


def generator_form(
    config: GeneratorConfig, state: Mapping[str, Tensor], ids: Vocabulary
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a stock shape as the family's class has them."""
    if isinstance(config, EncoderDecoderConfig):
        return t5_settings(config, ids), t5_tensors(config, state)
    family = decoder_family(config)
    assert family is not None
    return decoder_settings(family, config, ids), decoder_tensors(family, config, state)


def check_class(
    settings: Mapping[str, Any], endings: Sequence[str], *, where: object, loader: str = "AutoModel"
) -> None:
    """Refuses directories of classes with other heads.

    Args:
        settings: of the directory.
        endings: of the names of classes that can be read.
        where: it is.
        loader: the class of `transformers` that makes it one of these.

    Raises:
        UnsupportedError: if a class ends otherwise.
    """
    for name in settings.get("architectures") or ():
        if not name.endswith(tuple(endings)):
            raise UnsupportedError(
                f"{where}: the class is {name}; supported: "
                f"{', '.join(f'...{ending}' for ending in endings)} (to keep the network without "
                f"its head, load it with {loader} of transformers and call save_pretrained)"
            )


def read_generator(
    directory: Path, settings: Mapping[str, Any], family: str, *, where: str
) -> tuple[LanguageModelNetwork, dict[str, Any]]:
    """The model of a directory, and what `save_model` was given as `firth`.

    Raises:
        CheckpointError: if files or tensors are missing, unexpected or of another shape.
        UnsupportedError: if a setting has a value that no configuration here expresses, or the
            directory is of a class with another head.
    """
    check_class(settings, _ENDINGS, where=where, loader=GENERATORS[family])
    tensors, block = read_tensors(directory), dict(settings.get("firth", {}))
    config: GeneratorConfig
    if family == "t5":
        config = config_from_t5(settings, tensors, where=where)
    else:
        config = config_from_decoder(family, settings, where=where)
        if not config.tied and "lm_head.weight" not in tensors:
            raise CheckpointError(
                f"{directory}: no lm_head.weight, the output matrix, which is not that of the "
                f"embeddings here (tie_word_embeddings); save the model as {GENERATORS[family]}"
            )
        if config.tied and has_own_output(family, tensors):
            logger.warning(
                "%s: the output matrix is not that of the embeddings; both are kept", where
            )
            config = replace(config, tied=False)
    if block:
        ours = from_dict(type(config), block.pop("model"), where=where)
        block.pop("head")
        config = ours if _same(ours, config) else config
    with torch.device("meta"):
        model = build(config)
    fresh = model.state_dict()
    if isinstance(config, EncoderDecoderConfig):
        state = state_from_t5(config, tensors, fresh, where=directory)
    else:
        state = state_from_decoder(family, config, tensors, fresh, where=directory)
    model.to_empty(device="cpu").eval().load_state_dict(state)
    return model, block


def end_tokens(directory: Path, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Ids that close texts by the settings of a directory, where its tokenizer does not say so.

    Models of dialogues have several (Llama 3's end of a turn and end of a text).
    """
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (directory / name).is_file():
            ids = read_json(directory / name).get("eos_token_id")
            found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    others = sorted(found - {vocabulary.last})
    return {END_TOKENS: others} if others else {}


def _same(ours: GeneratorConfig, theirs: GeneratorConfig) -> bool:
    """Whether the shapes are the same, up to how weights begin, which their settings do not say."""
    if isinstance(ours, GPTConfig) and isinstance(theirs, GPTConfig):
        ours, theirs = (
            replace(one, num_groups=one.num_groups or one.num_heads, head_size=one.size_of_head)
            for one in (ours, theirs)
        )
        return replace(ours, output_init=theirs.output_init) == theirs
    return ours == theirs
