"""Checkpoints: atomic, safetensors and JSON only, the last two and the best kept.

RUN/checkpoints/step-00001200/model.safetensors      weights, by the model's own names
                              optimizer.safetensors  moments, as parameter.name
                              average.safetensors    averaged weights, where they are kept
                              streams.safetensors    states of a recurrent model's streams
                              state.json             step, tokens and what the caller adds
RUN/checkpoints/last, best                           names of directories
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from firth.atomic import TEMPORARY, need_space, write_directory, write_text
from firth.errors import CheckpointError
from firth.training.loop import State

_NAME = re.compile(r"step-(\d{8,})")


def save(run: Path, state: State, record: dict[str, Any], *, best: bool = False) -> Path:
    """Writes a checkpoint, points `last` (and `best`) to it, and removes those not needed.

    Args:
        run: the run directory.
        state: what training changes.
        record: JSON values to keep beside it.
        best: whether this is the best so far.

    Raises:
        ResourceError: if the disk is too full; nothing is lost then.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"step-*{TEMPORARY}"):  # of a process that was killed while it wrote
        shutil.rmtree(left)
    path = folder / f"step-{state.step:08d}"
    files = {
        "model.safetensors": dict(state.model.named_parameters()),
        "optimizer.safetensors": _optimizer_tensors(state),
    }
    if state.average is not None:
        files["average.safetensors"] = state.average.tensors()
    if carried := _carried(state):
        files["streams.safetensors"] = carried
    size = sum(t.numel() * t.element_size() for tensors in files.values() for t in tensors.values())
    need_space(folder, int(1.1 * size) + 1_000_000, "a checkpoint")

    def fill(temporary: Path) -> None:
        for name, tensors in files.items():
            save_file(
                {key: t.detach().contiguous() for key, t in tensors.items()}, temporary / name
            )
        text = json.dumps({"step": state.step, "tokens": state.tokens, **record}, indent=1)
        (temporary / "state.json").write_text(text, encoding="utf-8")

    write_directory(path, fill)
    if best:
        write_text(folder / "best", path.name)
    write_text(folder / "last", path.name)
    _remove_others(folder, path)
    return path


def find(run: Path, which: str = "last") -> Path | None:
    """The checkpoint that the pointer `which` names, or None if there is none yet."""
    pointer = run / "checkpoints" / which
    if not pointer.is_file():
        return None
    path = pointer.parent / pointer.read_text(encoding="utf-8").strip()
    if not (path / "state.json").is_file():
        raise CheckpointError(f"{pointer} names {path.name}, which is not there or not whole")
    return path


def read_record(path: Path) -> dict[str, Any]:
    """The JSON record of a checkpoint."""
    try:
        return json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: unreadable state.json: {error}") from error


def restore(path: Path, state: State) -> dict[str, Any]:
    """Fills `state` (fresh, of the same model and optimizers) from a checkpoint.

    Returns:
        The record that was saved beside it.

    Raises:
        CheckpointError: if a file is missing or does not fit.
    """
    record = read_record(path)
    try:
        _load_parameters(state.model, load_file(path / "model.safetensors"))
        _load_optimizers(state, load_file(path / "optimizer.safetensors"))
        if state.average is not None:
            state.average.restore(load_file(path / "average.safetensors"))
        if (path / "streams.safetensors").is_file():
            device = str(next(state.model.parameters()).device)
            _carried(state).update(load_file(path / "streams.safetensors", device=device))
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit this model and optimizer: {error}") from error
    state.step, state.tokens = record["step"], record["tokens"]
    return record


def read_weights(path: Path, model: nn.Module) -> int:
    """Fills a model with the weights of a checkpoint, averaged ones where they are kept.

    Returns:
        The step they are of.

    Raises:
        CheckpointError: if a file is missing or does not fit.
    """
    averaged = path / "average.safetensors"
    own = dict(model.named_parameters()).keys()
    try:
        tensors = load_file(averaged if averaged.is_file() else path / "model.safetensors")
        _load_parameters(model, {name: one for name, one in tensors.items() if name in own})
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path}: does not fit the model of the run: {error}") from error
    return read_record(path)["step"]


def _load_parameters(model: nn.Module, saved: dict[str, Tensor]) -> None:
    missing = dict(model.named_parameters()).keys() - saved.keys()
    unexpected = model.load_state_dict(saved, strict=False).unexpected_keys
    if missing or unexpected:
        raise KeyError(f"missing {sorted(missing)}, unexpected {sorted(unexpected)}")


def _carried(state: State) -> dict[str, Tensor]:
    """What a recurrent model hands on from one training step to the next."""
    return getattr(state.model, "carried", {True: {}})[True]


def _optimizer_tensors(state: State) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in state.model.named_parameters()}
    return {
        f"{names[p]}.{name}": value
        for optimizer in state.optimizers
        for p, values in optimizer.state.items()
        for name, value in values.items()
    }


def _load_optimizers(state: State, saved: dict[str, Tensor]) -> None:
    names = {p: name for name, p in state.model.named_parameters()}
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        parameter, _, name = key.rpartition(".")
        by_parameter.setdefault(parameter, {})[name] = tensor
    for optimizer in state.optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        states = {i: by_parameter.pop(names[p], {}) for i, p in enumerate(parameters)}
        for i, p in enumerate(parameters):
            if any(t.ndim and t.shape != p.shape for t in states[i].values()):
                raise ValueError(f"the optimizer's state of {names[p]} has another shape")
        found = {i: values for i, values in states.items() if values}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": found})
    if by_parameter:
        raise ValueError(f"no optimizer trains {sorted(by_parameter)}, whose state is there")


def _remove_others(folder: Path, last: Path, keep: int = 2) -> None:
    """Leaves the best checkpoint, the last and the one before; of a course given up, none."""
    best = folder / "best"
    kept = {best.read_text(encoding="utf-8").strip()} if best.is_file() else set()
    found = sorted(_step(path) for path in folder.iterdir() if _NAME.fullmatch(path.name))
    kept |= {f"step-{step:08d}" for step in [s for s in found if s <= _step(last)][-keep:]}
    for step in found:
        if (name := f"step-{step:08d}") not in kept:
            shutil.rmtree(folder / name)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
