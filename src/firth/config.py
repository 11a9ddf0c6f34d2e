"""Frozen dataclass trees to and from plain dictionaries, TOML and JSON.

Reading is strict: an unknown key is an error with a suggestion, a value of the wrong type is an
error that names its place. A field that may hold one of several dataclasses is a tagged union: the
dictionary carries the class name under ``"type"``.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from firth.errors import ConfigError

T = TypeVar("T")


def to_dict(value: Any) -> Any:
    """A dataclass tree as dictionaries, lists and scalars; dataclasses carry their ``type``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Builds the dataclass `cls` from a dictionary.

    Args:
        cls: the dataclass to build.
        data: its fields; those left out keep their defaults.
        where: the place to name in an error, such as a file name.

    Raises:
        ConfigError: on an unknown key (with a suggestion) or a value of the wrong type.
    """
    place = f"{where}: " if where else ""
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    arguments = {}
    for key, value in data.items():
        if key == "type":
            if value != cls.__name__:
                raise ConfigError(f"{place}type is {value!r}, expected {cls.__name__!r}")
            continue
        if key not in fields:
            raise ConfigError(
                f"{place}unknown setting {key!r} of {cls.__name__}; {suggest(key, fields)}"
            )
        arguments[key] = _convert(hints[key], value, f"{place}{cls.__name__}.{key}")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ConfigError(f"{place}{cls.__name__}: {error}") from error


def merge(config: T, changes: Mapping[str, Any], *, where: str = "") -> T:
    """Lays settings over a dataclass tree.

    All changes are made before anything is checked, so their order does not matter. A dictionary
    with another ``type`` than the field holds replaces it by that class's defaults.

    Args:
        config: the dataclass.
        changes: a nested dictionary (a TOML file, say), or values by dotted paths, for instance
            ``{"training.steps": 500}``.
        where: where they come from, for error messages.
    """
    tree = to_dict(config)
    _lay(tree, nested(changes))
    return from_dict(type(config), tree, where=where)


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as dictionaries: ``{"training.steps": 5}`` as ``{"training": {"steps": 5}}``."""
    if not isinstance(changes, Mapping) or not all(isinstance(path, str) for path in changes):
        raise ConfigError(
            f"settings are {str(changes)[:60]}, expected a dictionary of dotted names and values, "
            "such as {'training.steps': 5}"
        )
    tree: dict[str, Any] = {}
    for path, value in changes.items():
        for part in reversed(path.split(".")):
            value = {part: value}
        _join(tree, value, "")
    return tree


def _join(tree: dict[str, Any], data: Mapping[str, Any], place: str) -> None:
    """Adds settings to others in place, whichever of both are groups."""
    for key, value in data.items():
        if key in tree and isinstance(tree[key], dict) != isinstance(value, Mapping):
            single = value if isinstance(tree[key], dict) else tree[key]
            raise ConfigError(
                f"{place}{key} is given as {single!r} and as a group of settings; to choose a "
                f"class give {place}{key}.type"
            )
        if isinstance(value, Mapping):
            _join(tree.setdefault(key, {}), value, f"{place}{key}.")
        else:
            tree[key] = value


def _lay(tree: dict[str, Any], data: Mapping[str, Any]) -> None:
    for key, value in data.items():
        old = tree.get(key)
        tag = old.get("type") if isinstance(old, dict) else None
        if isinstance(value, Mapping) and isinstance(old, dict) and value.get("type", tag) == tag:
            _lay(old, value)
        else:
            tree[key] = value


def meanings(config: Any, place: str = "") -> dict[str, str]:
    """What each setting of nested dataclasses says of itself, by its dotted name.

    That is the first sentence below the field in the source, behind the words that it can be.
    """
    found = {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(type(config)))).body
    hints = typing.get_type_hints(type(config))
    for one, after in itertools.pairwise(getattr(tree, "body", ())):
        name = ast.unparse(one.target) if isinstance(one, ast.AnnAssign) else ""
        if not name or not hasattr(config, name):
            continue
        if dataclasses.is_dataclass(value := getattr(config, name)):
            found |= meanings(value, f"{place}{name}.")
        elif isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
            choices = " | ".join(_choices(hints[name]))
            first = re.split(r"(?<! al)\. (?=[A-Z])", text.rstrip("."), maxsplit=1)[0]
            found[f"{place}{name}"] = f"{choices}: {first}" if choices else first
    return found


def _choices(hint: Any) -> list[str]:
    """The words that a setting can be."""
    if typing.get_origin(hint) is Literal:
        return [str(word) for word in typing.get_args(hint)]
    return [word for part in typing.get_args(hint) for word in _choices(part)]


def read_toml(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ConfigError: if the file is missing, cannot be read or is not TOML, with the line.
    """
    try:
        return tomllib.loads(_read(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ConfigError: if the file is missing, cannot be read or is not JSON, with the line, or holds
            no object.
    """
    try:
        found = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found {str(found)[:40]}, expected a JSON object")
    return found


def _read(path: str | Path) -> str:
    """The text of a file, without the byte-order mark that some editors put there."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a directory, expected a file of settings; name the file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error


def check_types(config: Any) -> None:
    """Refuses a dataclass that was built with values its fields do not take.

    Those that are of another type and mean the same, such as numpy's numbers, are put as the fields
    have them, also into a frozen one: so they are written as what they are read as.

    Raises:
        ConfigError: naming the field, what it holds and what it takes.
    """
    cls = type(config)
    for name, hint in typing.get_type_hints(cls).items():
        if typing.get_origin(hint) is not typing.ClassVar:
            value = _convert(hint, getattr(config, name), f"{cls.__name__}.{name}")
            object.__setattr__(config, name, value)


def suggest(word: object, known: typing.Iterable[str]) -> str:
    """The ending of an error about an unknown `word`: a close match, or all that is known."""
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def _convert(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, place)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{place} is {value!r}; {suggest(str(value), map(str, arguments))}")
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return from_dict(hint, value, where=place)
    elif origin in (tuple, list) and isinstance(value, (list, tuple)):
        inner = arguments[0] if arguments else Any
        return origin(_convert(inner, item, f"{place}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        return {key: _convert(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    elif hint is int and isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral) or float(value).is_integer():
            return int(value) if isinstance(value, Integral) else int(float(value))
    elif hint is bool and type(value).__name__ == "bool":  # numpy's, too
        return bool(value)
    elif hint is float and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    elif hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{place} is {value!r}, expected {_name(hint)}")


def _convert_union(choices: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and type(None) in choices:
        return None
    classes = {
        c.__name__: c for c in choices if dataclasses.is_dataclass(c) and isinstance(c, type)
    }
    if isinstance(value, Mapping) and classes:
        tag = value.get("type") if "type" in value or len(classes) > 1 else next(iter(classes))
        if tag not in classes:
            raise ConfigError(f"{place}.type is {tag!r}; {suggest(str(tag), classes)}")
        return from_dict(classes[tag], value, where=place)
    for choice in choices:
        try:
            return _convert(choice, value, place)
        except ConfigError:
            continue
    wanted = " or ".join(map(_name, choices))
    if isinstance(value, str) and value in classes:
        wanted = f"its settings; to choose {value} give it as {place.rpartition('.')[2]}.type"
    raise ConfigError(f"{place} is {value!r}, expected {wanted}")


def _name(hint: Any) -> str:
    """A type as a reader knows it; of a Literal the values."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if hint is bool:
        return "true or false"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
