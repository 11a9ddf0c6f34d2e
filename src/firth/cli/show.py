"""`firth recipes`, `firth inspect` and `firth demo`."""

import inspect as inspection
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from firth.cli.options import AsJson, flat_settings, parse
from firth.config import meanings, read_json, to_dict
from firth.errors import CheckpointError, ConfigError
from firth.text.languages import has_tokens, open_tokens

_SHAPE = {
    "num_layers": "{} layers",
    "hidden_size": "hidden {}",
    "num_heads": "{} heads",
    "vocab_size": "vocabulary {:,}",
}
"""What is said of those settings that a model has."""


@dataclass(frozen=True, kw_only=True)
class RecipesOptions:
    """List the recipes, or show one with every setting resolved and what it means."""

    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[show NAME]")
    ] = ()
    """Nothing, or: show NAME."""
    size: str | None = None
    """As `firth pretrain` takes it: tiny, mini, small, medium, base or large."""
    vocab: int | None = None
    """Tokens in the vocabulary."""
    json: AsJson = False


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What a run directory holds and how its training went."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run, a model directory, or an adapted model."""
    json: AsJson = False


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The whole job on the text that comes with firth, in about five minutes on two cores."""

    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "runs/demo"
    """The run directory."""
    minutes: float = 2.0
    """Of pre-training."""


def recipes(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    from firth.recipes import RECIPES, recipe

    options = parse(RecipesOptions, arguments, "recipes")
    if not options.words:
        known = {name: (f.__doc__ or "").strip().splitlines()[0] for name, f in RECIPES.items()}
        lines = [f"{name}\t{what}" for name, what in known.items()]
        if options.size is not None or options.vocab is not None:
            raise ConfigError("--size and --vocab are of one recipe: firth recipes show NAME")
        print(_json(known) if options.json else "\n".join(lines))
        return
    if options.words[0] != "show" or len(options.words) != 2:
        raise ConfigError("expected nothing or: firth recipes show NAME")
    name = options.words[1]
    chosen = recipe(name, size=options.size, vocab_size=options.vocab)
    shown = to_dict(chosen)
    if options.json:
        print(_json(shown))
        return
    # As a file of settings is written, so that it can be one (--config): TOML has no null.
    description = inspection.cleandoc(RECIPES[name].__doc__ or "")
    print("\n".join(f"# {line}".rstrip() for line in description.splitlines()) + "\n")
    said = meanings(chosen)
    for path, value in flat_settings(shown):
        meaning = f"  # {said[path]}" if path in said else ""
        print(f"{'# ' if value is None else ''}{path} = {_json(value)}{meaning}")


def inspect(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    options = parse(Inspect, arguments, "inspect")
    run = Path(options.run)
    if not (run / "config.json").is_file() and not (run / "recipe.json").is_file():
        raise CheckpointError(f"{run}: neither a run nor a model directory")
    facts = _facts(run)
    if options.json:
        print(_json(facts))
        return
    for name, value in facts.items():
        if isinstance(value, list) and not isinstance(value[0], dict):
            print("\t".join([name, *map(str, value)]))
        elif isinstance(value, list):
            print("\t".join([name, *value[0]]))
            for row in value:
                print("\t".join(["", *map(_cell, row.values())]))
        else:
            print(f"{name}\t{_cell(value)}")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:,.2f}"
    return f"{value:,}" if type(value) is int else str(value)


def _count_parameters(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return sum(math.prod(shape) for shape in shapes)


def _facts(run: Path) -> dict[str, Any]:
    from firth.training.checkpoint import find, read_record
    from firth.training.tracking import read_metrics

    facts: dict[str, Any] = {"directory": str(run)}
    if (run / "model.safetensors").is_file():
        facts["parameters"] = _count_parameters(run / "model.safetensors")
    if (run / "recipe.json").is_file():
        record = read_json(run / "recipe.json")
        recipe = record.get("recipe") or record.get("requested")
        if not isinstance(recipe, dict):
            raise CheckpointError(f"{run / 'recipe.json'} is not of a run of firth")
        if record["recipe"] is None:
            facts["training"] = "not begun: its text was not read to the end"
        model = recipe["model"]
        facts["recipe"] = recipe["name"]
        facts["shape"] = ", ".join(
            what.format(model[name]) for name, what in _SHAPE.items() if name in model
        )
        facts["steps"] = recipe["training"]["steps"]
    if (path := find(run)) is not None:
        facts["checkpoint step"] = read_record(path)["step"]
    for side in ("train", "valid"):
        if has_tokens(folder := run / "data" / side):
            facts[f"{side} tokens"] = open_tokens(folder).num_tokens
    if (run / "adaptation.json").is_file():
        facts |= _adaptation(read_json(run / "adaptation.json"))
    rows = [row for row in read_metrics(run) if "valid_loss" in row]
    if rows:
        facts["validation"] = [
            {
                "step": row["step"],
                "tokens": row["tokens"],
                "minutes": row["seconds"] / 60,
                "perplexity": row["valid_perplexity"],
            }
            for row in rows
        ]
    return facts


def _adaptation(record: dict[str, Any]) -> dict[str, Any]:
    seeds = [
        {"seed": one["seed"], **one["metrics"], "steps": one["steps"]}
        | {"degenerate": one["degenerate"]}
        for one in record["seeds"]
    ]
    task = record["task"]
    facts = {"task": task["type"]}
    labels = {"labels": task["labels"]} if task["labels"] else {}
    return {**facts, **labels, "adaptation": record["adaptation"]["type"], "seeds": seeds}


def demo(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    from firth.demo import run_demo

    options = parse(Demo, arguments, "demo")
    run_demo(Path(options.output), options.minutes)
