"""Weights of a model directory: written in one step, read whole or in shards, matched by name."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from firth.atomic import need_writable, output_path, write_directory, write_file
from firth.config import read_json
from firth.errors import CheckpointError, ConfigError

WEIGHTS = "model.safetensors"
ADAPTED = "adaptation.json"
"""Only a model that was taught a task has this file."""
TASK_NETWORK = "task_network.safetensors"
"""Mix and head of an adapted model, where the head is not the stock one in `WEIGHTS`."""
_RUN = "recipe.json"
"""Only a run directory has this file."""
_TOKENIZER = "tokenizer.json"
MODEL_FILES = (WEIGHTS, "config.json", _RUN, ADAPTED, _TOKENIZER)

_OF_A_MODEL = (
    *(WEIGHTS, f"{WEIGHTS}.index.json", "model-*.safetensors", "config.json"),
    *(ADAPTED, TASK_NETWORK, "generation_config.json"),
    *(_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.txt", "vocab.json", "merges.txt", "spiece.model"),
    "sentencepiece.bpe.model",
)
"""What belongs to a model of `transformers` or ours, and is wrong beside another one."""

_NAMED = 10
"""Tensors that an error names before it only counts them."""


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file that `transformers` reads, in one step.

    Raises:
        ResourceError: if it cannot be written.
    """
    write_file(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))


def refuse_to_overwrite(directory: Path, own: str, *, overwrite: bool) -> None:
    """Keeps a model from being written over another.

    Args:
        directory: where a model is to be written.
        own: the file that tells a model of this kind.
        overwrite: one of this kind may be replaced.

    Raises:
        ConfigError: if `directory` holds a model that may not be replaced: one without that file,
            or an adapted one besides, never is.
    """
    found = {name for name in MODEL_FILES if (directory / name).exists()}
    if found == {_TOKENIZER}:
        raise ConfigError(
            f"{directory / _TOKENIZER} is there already, without a model, and would be lost; "
            "choose another directory (-o on the command line)"
        )
    others = found & {ADAPTED, _RUN} - {own}
    if found and (own not in found or others):
        raise ConfigError(
            f"{directory} holds another model ({sorted(others or found)[0]}), which would be lost; "
            "choose another directory (-o on the command line)"
        )
    if found and not overwrite:
        raise ConfigError(
            f"{directory} holds a model already; choose another directory (-o on the command "
            "line), or replace it with overwrite=True (--overwrite)"
        )


def write_model(
    directory: str | Path, fill: Callable[[Path], None], own: str, *, overwrite: bool
) -> None:
    """Lets `fill` write a model's files; once all are whole they are moved to `directory`.

    Files of a model that is replaced do not stay beside the new one's; other files do.

    Args:
        directory: where to; made if it is not there.
        fill: is given the directory to write to.
        own: the file that tells a model of this kind.
        overwrite: one of this kind may be replaced.

    Raises:
        ConfigError: if there is a model that may not be replaced, or a file of that name.
        ResourceError: if the files cannot be written; what was there is there then.
    """
    directory = output_path(directory)
    refuse_to_overwrite(directory, own, overwrite=overwrite)
    need_writable(directory, directory=True)
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / ".new"
    write_directory(fresh, fill)
    for pattern in _OF_A_MODEL:
        for old in directory.glob(pattern):
            if not (fresh / old.name).exists():
                old.unlink()
    for file in fresh.iterdir():
        os.replace(file, directory / file.name)
    fresh.rmdir()


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the shards that its index lists.

    Raises:
        CheckpointError: if there is no such file, or it is damaged.
    """
    index = directory / f"{WEIGHTS}.index.json"
    if (directory / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
    else:
        raise CheckpointError(f"{directory}: no {WEIGHTS}{_pickle_hint(directory)}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(directory / name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory / name}: cannot be read: {error}") from error
    return tensors


def _pickle_hint(directory: Path) -> str:
    pickles = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if not pickles:
        return ""
    return (
        f"; {pickles[0]} is a pickle, which can run code and is not read: load the model with "
        "transformers and call save_pretrained, which writes safetensors"
    )


def match_tensors(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, torch.Size],
    *,
    where: Path,
    rows: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a file under our names, parts put together.

    Args:
        tensors: by the file's names.
        names: our name to the file's names of its parts along the first dimension.
        shapes: by our names.
        where: the directory to name in an error.
        rows: of each part, by our names; by default all parts have as many.

    Raises:
        CheckpointError: naming the tensors that are missing, unexpected or of another shape.
    """
    wrong = []
    for name, parts in names.items():
        total, *rest = shapes[name]
        counts = (total // len(parts),) * len(parts) if rows is None else rows[name]
        for part, count in zip(parts, counts, strict=True):
            shape = torch.Size((count, *rest))
            if part not in tensors:
                wrong.append(f"{part} is missing")
            elif tensors[part].shape != shape:
                found = tuple(tensors[part].shape)
                wrong.append(f"{part} has shape {found}, expected {tuple(shape)}")
    used = {part for parts in names.values() for part in parts}
    wrong += [f"{name} is unexpected" for name in sorted(tensors) if name not in used]
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise CheckpointError(f"{where}: {'; '.join(wrong[:_NAMED])}{more}")
    return {name: torch.cat([tensors[p] for p in parts]) for name, parts in names.items()}
