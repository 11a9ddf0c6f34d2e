"""Run directories that `transformers` loads, and its directories as models here.

A directory holds `config.json` and `model.safetensors`. Where the shape is one of BERT, RoBERTa,
DistilBERT, ModernBERT, GPT-2, Llama or T5, both are in the form of `transformers`, with one more
block, `firth`, in the settings; otherwise the tensors keep our names and the settings hold that
block alone.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from firth.atomic import write_text
from firth.config import from_dict, read_json, to_dict
from firth.errors import CheckpointError, ConfigError, UnsupportedError
from firth.interop.files import WEIGHTS, match_tensors, read_tensors, write_tensors
from firth.interop.generators import (
    END_TOKENS,
    GENERATORS,
    check_class,
    generator_form,
    read_generator,
)
from firth.interop.names import known_tensors, stock_names
from firth.interop.stock import (
    ALIASES,
    ARCHITECTURES,
    classifier_settings,
    config_from_stock,
    head_from_stock,
    head_settings,
    loads_in_transformers,
    special_tokens,
    stock_family,
    stock_head,
    stock_settings,
)
from firth.models import (
    MODELS,
    EncoderDecoderConfig,
    GPTConfig,
    LanguageModelNetwork,
    ModelConfig,
    build,
)
from firth.models.bert import Bert, BertConfig
from firth.models.mix import SequenceHead
from firth.protocols import Vocabulary

__all__ = [
    "LoadedModel",
    "ProblemType",
    "load_model",
    "loads_in_transformers",
    "save_model",
    "stock_family",
    "stock_head",
]

logger = logging.getLogger(__name__)

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

_CONFIG = "config.json"

_READABLE = ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """What a directory holds. Model and head are in evaluation mode, in float32, on the CPU."""

    model: LanguageModelNetwork
    head: SequenceHead | None
    labels: tuple[str, ...]
    """Names of the head's outputs; none without a head and for unnamed regression values."""
    problem_type: ProblemType | None
    """What the head's scores mean; None without a head."""
    firth: dict[str, Any]
    """The dictionary `save_model` was given; empty for a directory of another program."""
    family: str | None
    """The family whose classes load the directory in `transformers`; None for our own format."""
    lm_head: bool
    """Whether the LM head was in the file; if not, its weights are fresh random ones."""


def save_model(
    directory: str | Path,
    model: LanguageModelNetwork,
    *,
    vocabulary: Vocabulary,
    firth: Mapping[str, Any],
    head: SequenceHead | None = None,
    labels: tuple[str, ...] = (),
    problem_type: ProblemType | None = None,
    own_form: bool = False,
    lm_head: bool = True,
) -> None:
    """Writes `config.json` and `model.safetensors` (float32), each replaced in one step.

    The stock classes hold either the masked-LM head or a sequence head, and BERT's sequence head
    has the pooler's place; so in the form of `transformers` a model with `head` is saved without
    its masked-LM head and without its own pooler, and only BERT's pooler and pair head are saved at
    all (`BertForPreTraining`). No stock class has a span boundary head: it is left out there.
    `loads_in_transformers` says which form it is; our own form keeps everything.

    Args:
        directory: made if it is not there.
        model: the encoder or decoder.
        vocabulary: ids of the special tokens.
        firth: kept in the settings as it is; the keys "model", "head" and
            "lm_head" are taken.
        head: the sequence head, if there is one.
        labels: names of the head's outputs, in order.
        problem_type: what the head's scores mean.
        own_form: write our own form even where there is a stock class, because the scores need more
            than model and head (a layer mix, say) and that class would give other ones.
        lm_head: False for a model whose language-model head was never trained: it is left out of
            the form of `transformers`, and known as such when our own is read.

    Raises:
        ConfigError: if there are not as many labels as outputs.
        ResourceError: if a file cannot be written; the old one is still there then.
    """
    config, directory = model.config, Path(directory)
    state = {
        name: tensor.detach().to("cpu", torch.float32)
        for name, tensor in _state(model, head).items()
    }
    settings, tensors = {"model_type": "firth"}, state
    if not own_form and loads_in_transformers(config, head, vocabulary):
        settings, tensors = _stock_form(config, state, head, vocabulary, lm_head)
        if others := firth.get(END_TOKENS):
            settings["eos_token_id"] = [vocabulary.last, *others]
    if head is not None:
        settings |= _label_settings(head.out.out_features, labels, problem_type)
    form = None if head is None else head_settings(head)
    untrained = {} if lm_head else {"lm_head": False}
    settings |= {"firth": {**firth, "model": to_dict(config), "head": form, **untrained}}
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / WEIGHTS, tensors)
    write_text(directory / _CONFIG, text)


def _stock_form(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    head: SequenceHead | None,
    ids: Vocabulary,
    lm_head: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors as the family's class has them."""
    if isinstance(config, GPTConfig | EncoderDecoderConfig):
        return generator_form(config, state, ids)
    assert isinstance(config, BertConfig)
    family = stock_family(config)
    assert family is not None
    settings = _stock_settings(family, config, head, ids)
    if head is None and not lm_head:
        settings["architectures"] = [ARCHITECTURES[family] + "Model"]
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    return settings, _stock_tensors(family, state)


def _state(model: nn.Module, head: SequenceHead | None) -> dict[str, Tensor]:
    """All tensors by our names, the sequence head's under `sequence_head`."""
    state = dict(model.state_dict())
    if head is not None:
        state |= {f"sequence_head.{name}": tensor for name, tensor in head.state_dict().items()}
    return state


def _stock_settings(
    family: str, config: BertConfig, head: SequenceHead | None, vocabulary: Vocabulary
) -> dict[str, Any]:
    pairs = family == "bert" and config.pair_head
    suffix = "ForPreTraining" if pairs else "ForMaskedLM"
    suffix = suffix if head is None else "ForSequenceClassification"
    return {
        "architectures": [ARCHITECTURES[family] + suffix],
        "model_type": family,
        "dtype": "float32",
        **stock_settings(family, config),
        **special_tokens(family, vocabulary),
        **({} if head is None else classifier_settings(family, head)),
    }


def _stock_tensors(family: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in `transformers`, those left out that its class does not have."""
    classifier = "sequence_head.out.weight" in state
    left_out = ("boundary_head.", "head.") if classifier else ("boundary_head.",)
    left_out += ("pooler.", "pair_head.") if classifier or family != "bert" else ()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(left_out):
            names = stock_names(family, name)
            parts = (part.clone() for part in tensor.chunk(len(names)))
            tensors |= zip(names, parts, strict=True)
    return tensors


def _label_settings(
    count: int, labels: tuple[str, ...], problem_type: ProblemType | None
) -> dict[str, Any]:
    if labels and len(labels) != count:
        raise ConfigError(f"{len(labels)} labels for a head of {count} outputs")
    names = labels or _unnamed(count)
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": problem_type,
    }


def _unnamed(count: int) -> tuple[str, ...]:
    """What `transformers` calls labels without a name."""
    return tuple(f"LABEL_{i}" for i in range(count))


def load_model(directory: str | Path) -> LoadedModel:
    """Reads a run directory, or a `transformers` directory of a family that there is here.

    Of encoders it reads the classes without a head and those for masked LM, pre-training and
    sequence classification; of decoders and T5 those for language modelling, and those without a
    head where the embeddings are the output matrix. In one file or in shards, in any
    floating-point type.

    Raises:
        CheckpointError: if files or tensors are missing, unexpected or of another shape.
        UnsupportedError: if the settings name a model or a variant that there is not here.
    """
    directory = Path(directory)
    path = directory / _CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{directory}: no {_CONFIG}; expected a run directory or a transformers directory"
        )
    settings = read_json(path)
    kind = settings.get("model_type")
    if kind == "firth":
        return _load_native(directory, settings)
    if kind in GENERATORS:
        return _load_generator(directory, settings, str(kind))
    family = ALIASES.get(str(kind), kind)
    if family not in ARCHITECTURES:
        known = ", ".join([*ARCHITECTURES, *ALIASES, *GENERATORS])
        raise UnsupportedError(f"{path}: model_type is {kind!r}; supported: {known}")
    check_class(settings, _READABLE, where=path)
    return _load_stock(directory, settings, family)


def _load_native(directory: Path, settings: Mapping[str, Any]) -> LoadedModel:
    block = settings.get("firth")
    if not isinstance(block, dict) or not {"model", "head"} <= block.keys():
        raise CheckpointError(
            f"{directory / _CONFIG}: no block 'firth' with a model and a head, which model_type "
            "'firth' has; write the directory again"
        )
    block = dict(block)
    shape = block.pop("model")
    config = from_dict(MODELS[shape["type"]][0], shape, where=str(directory / _CONFIG))
    form, lm_head = block.pop("head"), block.pop("lm_head", True)
    tensors = read_tensors(directory)
    with torch.device("meta"):
        model = build(config, pooler="pooler.weight" in tensors)
        head = None if form is None else SequenceHead(**form)
    names = {name: (name,) for name in _state(model, head)}
    _fill(model, head, tensors, names, directory)
    return LoadedModel(
        model=model,
        head=head,
        **_read_labels(settings, head, directory),
        firth=block,
        family=None,
        lm_head=lm_head,
    )


def _load_generator(directory: Path, settings: Mapping[str, Any], family: str) -> LoadedModel:
    model, block = read_generator(directory, settings, family, where=str(directory / _CONFIG))
    return LoadedModel(
        model=model,
        head=None,
        **_read_labels(settings, None, directory),
        lm_head=block.pop("lm_head", True),
        firth=block,
        family=family,
    )


def _load_stock(directory: Path, settings: Mapping[str, Any], family: str) -> LoadedModel:
    config, block = _stock_config(directory, settings, family)
    tensors = known_tensors(family, directory)

    def find(name: str) -> Tensor | None:
        return tensors.get(stock_names(family, name)[0])

    scores = find("sequence_head.out.bias")
    lm_head = scores is None and find("head.dense.weight") is not None
    pooler = scores is None and family == "bert" and find("pooler.weight") is not None
    pairs = pooler and find("pair_head.weight") is not None
    config = replace(config, pair_head=pairs, boundary_places=0)
    with torch.device("meta"):
        model, head = Bert(config, pooler=pooler), None
        if scores is not None:
            outputs = len(settings.get("id2label") or scores)
            head = head_from_stock(family, config, settings, outputs)
    names = {
        name: stock_names(family, name)
        for name in _state(model, head)
        if lm_head or not name.startswith("head.")
    }
    _fill(model, head, tensors, names, directory)
    if not lm_head and head is None:
        logger.warning("%s: no masked-LM head; it starts from random weights", directory)
    return LoadedModel(
        model=model,
        head=head,
        **_read_labels(settings, head, directory),
        firth=block,
        family=family,
        lm_head=lm_head,
    )


def _stock_config(
    directory: Path, settings: Mapping[str, Any], family: str
) -> tuple[BertConfig, dict[str, Any]]:
    """The shape, and what `save_model` was given as `firth`."""
    where, block = str(directory / _CONFIG), dict(settings.get("firth", {}))
    config = config_from_stock(family, settings, where=where)
    if block:
        # Both say the same, up to fields without effect in this shape, unless transformers carried
        # the block into a model of another shape (one with more tokens, say): then it is stale.
        ours = from_dict(BertConfig, block.pop("model"), where=where)
        block.pop("head")
        block.pop("lm_head", None)  # the tensors tell
        if stock_settings(family, ours) == stock_settings(family, config):
            config = ours
    return config, block


def _fill(
    model: LanguageModelNetwork,
    head: SequenceHead | None,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, tuple[str, ...]],
    directory: Path,
) -> None:
    """Copies the tensors of a file into modules that are still on the meta device.

    What is in the model and not in `names` (the masked-LM head) is initialised.
    """
    shapes = {name: tensor.shape for name, tensor in _state(model, head).items()}
    state = match_tensors(tensors, names, shapes, where=directory)
    model.to_empty(device="cpu").eval()
    if any(name not in names for name in model.state_dict()):
        model.reset_parameters()  # type: ignore[operator]
    model.load_state_dict(
        {name: state[name] for name in model.state_dict() if name in names}, False
    )
    if head is not None:
        head.to_empty(device="cpu").eval()
        head.load_state_dict({name: state[f"sequence_head.{name}"] for name in head.state_dict()})


def _read_labels(
    settings: Mapping[str, Any], head: SequenceHead | None, directory: Path
) -> dict[str, Any]:
    if head is None:
        return {"labels": (), "problem_type": None}
    count = head.out.out_features
    # transformers once left the names out where there were two of them, both without a name.
    names = settings.get("id2label") or dict(enumerate(_unnamed(count)))
    by_place = {str(place): str(name) for place, name in names.items()}
    labels = tuple(by_place.get(str(place), "") for place in range(count))
    if len(by_place) != count or "" in labels or len(set(labels)) != count:
        raise CheckpointError(
            f"{directory / _CONFIG}: id2label is {names}; expected a name of its own for each "
            f"number from 0 to {count - 1}"
        )
    kind = settings.get("problem_type")
    kind = kind or ("regression" if count == 1 else "single_label_classification")
    values = kind == "regression" and labels == _unnamed(count)
    return {"labels": () if values else labels, "problem_type": kind}
