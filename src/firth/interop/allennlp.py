"""ELMo as its authors published it: `options.json` beside a file of weights in HDF5.

Their LSTM has the gates i, g, f, o with 1 added to f as it runs, one matrix for [x, h], and all
matrices the other way round.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firth.atomic import write_file, write_text
from firth.config import check_types, read_json
from firth.errors import CheckpointError, ConfigError, UnsupportedError
from firth.models.elmo import Elmo, ElmoConfig

OPTIONS = "options.json"
_WEIGHTS = "weights.hdf5"
_SPECIAL = 5
"""Entries of a vocabulary without words."""


def is_published_elmo(directory: Path) -> bool:
    """Whether a directory is one in the form in which ELMo was published."""
    return (directory / OPTIONS).is_file() and not (directory / "config.json").is_file()


def read_elmo(directory: Path) -> Elmo:
    """The network of a directory, in evaluation mode; such files hold no softmax.

    Raises:
        CheckpointError: if a file is damaged, or an option or weight is missing or of another
            shape.
        UnsupportedError: without the package h5py, or for a network without characters.
    """
    found = sorted(directory.glob(f"*{_WEIGHTS}"))
    if len(found) != 1 or not (directory / OPTIONS).is_file():
        raise CheckpointError(
            f"{directory}: found {len(found)} files *{_WEIGHTS}, expected one beside {OPTIONS}"
        )
    (path,) = found
    config = _config(read_json(directory / OPTIONS), str(directory / OPTIONS))
    try:
        with _h5py().File(path, "r") as file:
            tensors = _our_tensors(config, file, path)
    except (OSError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path}: {error}; it is cut short, damaged or of another network: copy or download it "
            "again"
        ) from error
    with torch.device("meta"):
        model = Elmo(config)
    for name, parameter in model.named_parameters():
        if name in tensors and tensors[name].shape != parameter.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected "
                f"{tuple(parameter.shape)} by {OPTIONS}"
            )
    tensors |= {"head.weight": torch.zeros(model.head.weight.shape)}
    tensors |= {"head.bias": torch.zeros(model.head.bias.shape)}
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def write_elmo(directory: Path, model: Elmo) -> None:
    """Writes the network, without its softmax, as `options.json` and `weights.hdf5`.

    Raises:
        UnsupportedError: without the package h5py.
    """
    h5py, config = _h5py(), model.config
    directory.mkdir(parents=True, exist_ok=True)
    tensors = _their_tensors(model)

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, array in tensors.items():
                file.create_dataset(name, data=array)

    write_file(directory / _WEIGHTS, write)
    write_text(directory / OPTIONS, json.dumps(_options(config), indent=2))


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UnsupportedError(
            "ELMo's weights are in HDF5, which needs the package h5py: pip install 'firth[elmo]'"
        ) from error
    return h5py


def _config(options: dict[str, Any], where: str) -> ElmoConfig:
    if "char_cnn" not in options:
        raise UnsupportedError(f"{where}: a network without char_cnn, which is not read")
    try:
        config = _shape(options["char_cnn"], options["lstm"])
        check_types(config)
    except KeyError as error:
        raise CheckpointError(f"{where}: {error} is missing") from error
    except (TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{where}: not the options of an ELMo: {error}") from error
    return config


def _shape(cnn: dict[str, Any], lstm: dict[str, Any]) -> ElmoConfig:
    return ElmoConfig(
        vocab_size=_SPECIAL,
        output_size=_SPECIAL,
        projection_size=lstm["projection_dim"],
        cell_size=lstm["dim"],
        num_layers=lstm["n_layers"],
        character_dim=cnn["embedding"]["dim"],
        filters=tuple((width, number) for width, number in cnn["filters"]),
        num_highway=cnn["n_highway"],
        activation=cnn.get("activation", "relu"),
        max_characters=cnn["max_characters_per_token"],
        cell_clip=float(lstm.get("cell_clip") or 0.0),
        projection_clip=float(lstm.get("proj_clip") or 0.0),
        residual=bool(lstm.get("use_skip_connections", False)),
    )


def _options(config: ElmoConfig) -> dict[str, Any]:
    return {
        "lstm": {
            "use_skip_connections": config.residual,
            "projection_dim": config.projection_size,
            "cell_clip": config.cell_clip,
            "proj_clip": config.projection_clip,
            "dim": config.cell_size,
            "n_layers": config.num_layers,
        },
        "char_cnn": {
            "activation": config.activation,
            "filters": [list(one) for one in config.filters],
            "n_highway": config.num_highway,
            "embedding": {"dim": config.character_dim},
            "n_characters": 262,
            "max_characters_per_token": config.max_characters,
        },
    }


def _cell(direction: int, layer: int) -> str:
    return f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"


_FORGET = 1.0


def _our_tensors(config: ElmoConfig, file: Any, path: Path) -> dict[str, Tensor]:
    def read(name: str) -> np.ndarray:
        if name not in file:
            raise CheckpointError(f"{path}: {name} is missing")
        return np.asarray(file[name], np.float32)

    _refuse_more(config, file, path)
    found = {"embeddings.characters.weight": read("char_embed")}
    for i, (width, number) in enumerate(config.filters):
        kernel = read(f"CNN/W_cnn_{i}")
        found[f"embeddings.filters.{i}.weight"] = kernel.reshape(-1, kernel.shape[-1]).T
        found[f"embeddings.filters.{i}.bias"] = read(f"CNN/b_cnn_{i}")
        if kernel.shape[1] != width or kernel.shape[3] != number:
            raise CheckpointError(
                f"{path}: CNN/W_cnn_{i} has {kernel.shape[3]} filters of width {kernel.shape[1]}, "
                f"expected {number} of width {width} by {OPTIONS}"
            )
    for i in range(config.num_highway):
        block, ours = f"CNN_high_{i}/", f"embeddings.highways.{i}.both."
        both = [read(f"{block}W_{part}").T for part in ("transform", "carry")]
        found[f"{ours}weight"] = np.concatenate(both)
        both = [read(f"{block}b_{part}") for part in ("transform", "carry")]
        found[f"{ours}bias"] = np.concatenate(both)
    found["embeddings.projection.weight"] = read("CNN_proj/W_proj").T
    found["embeddings.projection.bias"] = read("CNN_proj/b_proj")
    size = config.projection_size
    for layer in range(config.num_layers):
        for direction in (0, 1):
            cell, ours = _cell(direction, layer), f"layers.{layer}.directions.{direction}."
            weight = _reordered(read(f"{cell}W_0").T)
            bias = _reordered(read(f"{cell}B"))
            bias[config.cell_size : 2 * config.cell_size] += _FORGET
            found[f"{ours}weight"], found[f"{ours}recurrent"] = weight[:, :size], weight[:, size:]
            found[f"{ours}bias"], found[f"{ours}projection"] = bias, read(f"{cell}W_P_0").T
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in found.items()}


def _refuse_more(config: ElmoConfig, file: Any, path: Path) -> None:
    """Refuses a file with layers or filters that its options do not have."""
    for name, value, key in (
        (f"CNN/W_cnn_{len(config.filters)}", len(config.filters), "filters"),
        (f"CNN_high_{config.num_highway}", config.num_highway, "n_highway"),
        (_cell(0, config.num_layers).removesuffix("/LSTMCell/"), config.num_layers, "n_layers"),
    ):
        if name in file:
            raise CheckpointError(
                f"{path}: has {name}, one more than {OPTIONS} says ({key} is {value}); the two are "
                "not of one model"
            )


def _reordered(gates: np.ndarray) -> np.ndarray:
    """From i, g, f, o to i, f, o, g."""
    i, g, f, o = np.split(gates, 4)
    return np.concatenate([i, f, o, g])


def _their_tensors(model: Elmo) -> dict[str, np.ndarray]:
    ours = {name: t.detach().cpu().float().numpy() for name, t in model.state_dict().items()}
    config = model.config
    found = {"char_embed": ours["embeddings.characters.weight"]}
    for i, (width, number) in enumerate(config.filters):
        kernel = ours[f"embeddings.filters.{i}.weight"].T
        found[f"CNN/W_cnn_{i}"] = kernel.reshape(1, width, config.character_dim, number)
        found[f"CNN/b_cnn_{i}"] = ours[f"embeddings.filters.{i}.bias"]
    for i in range(config.num_highway):
        for part, name in (("weight", "W"), ("bias", "b")):
            transform, carry = np.split(ours[f"embeddings.highways.{i}.both.{part}"], 2)
            found[f"CNN_high_{i}/{name}_transform"] = transform.T
            found[f"CNN_high_{i}/{name}_carry"] = carry.T
    found["CNN_proj/W_proj"] = ours["embeddings.projection.weight"].T
    found["CNN_proj/b_proj"] = ours["embeddings.projection.bias"]
    for layer in range(config.num_layers):
        for direction in (0, 1):
            cell, own = _cell(direction, layer), f"layers.{layer}.directions.{direction}."
            weight = np.concatenate([ours[f"{own}weight"], ours[f"{own}recurrent"]], axis=1)
            i, f, o, g = np.split(ours[f"{own}bias"], 4)
            found[f"{cell}B"] = np.concatenate([i, g, f - _FORGET, o])
            i, f, o, g = np.split(weight, 4)
            found[f"{cell}W_0"] = np.concatenate([i, g, f, o]).T
            found[f"{cell}W_P_0"] = ours[f"{own}projection"].T
    return found
