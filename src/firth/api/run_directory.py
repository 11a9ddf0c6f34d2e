"""The run directory of pre-training: whose it is, what it was begun with, who writes to it now.

RUN/recipe.json  "requested": the recipe as it was asked for
                 "recipe": the same with the vocabulary and the steps filled in, once text is there
                 "text": a hash of each part of the text, and of the file of spans
                 "start": a hash of the weights that it goes on from, if there are any
                 "tokenizer": a hash of the one that was given, if one was
                 "vectors": a hash of the word vectors that its tokens began with, if there were any
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from firth import __version__
from firth.api.training_text import AnyCorpus, by_language
from firth.atomic import write_text
from firth.config import from_dict, read_json, to_dict
from firth.errors import ConfigError, DataError
from firth.interop.files import refuse_to_overwrite
from firth.locks import only_process
from firth.recipes import Recipe
from firth.text.corpus import Corpus
from firth.text.files import digest_file

_RECORD = "recipe.json"


@contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Makes the run directory, and holds it against other processes that would train in it.

    Raises:
        ConfigError: if another process holds it.
        ResourceError: if it cannot be made.
    """
    with only_process(run) as held:
        if not held:
            raise ConfigError(
                f"another process is training in {run}; wait for it, stop it, or choose another "
                "directory with -o"
            )
        yield


def read_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run directory."""
    return from_dict(Recipe, read_json(run / _RECORD)["recipe"], where=str(run / _RECORD))


def keep_recipe(run: Path, recipe: Recipe) -> None:
    """Puts the resolved recipe on record."""
    _write(run, read_json(run / _RECORD) | {"recipe": to_dict(recipe)})


def finished_without_checkpoints(run: Path) -> bool:
    """Whether a run has come to its end, and its checkpoints were deleted since."""
    return (run / "config.json").is_file() and not (run / "checkpoints" / "last").is_file()


def refuse_foreign(run: Path, corpora: Mapping[str, AnyCorpus]) -> None:
    """Keeps a run from writing over, or clearing away, what firth has not put there.

    Raises:
        ConfigError: if something of another kind is in the directory, or the text itself.
    """
    parts = (part for corpus in corpora.values() for _, part in by_language(corpus))
    files = (file for part in parts if isinstance(part, Corpus) for file in part.files)
    for file in files:
        if file.resolve().is_relative_to(run.resolve()):
            raise ConfigError(
                f"{file} lies in {run}, where the run would put its own files beside it; choose "
                "another directory with -o, such as a new one below it"
            )
    refuse_to_overwrite(run, _RECORD, overwrite=True)
    if (run / _RECORD).exists():
        return
    for name in ("data", "tokenizer.json", "README.md"):
        if (run / name).exists():
            raise ConfigError(
                f"{run / name} is there already and is not of a run of firth, which would write "
                "its own in its place; choose a new directory with -o"
            )


def begin(
    run: Path,
    recipe: Recipe,
    corpora: Mapping[str, AnyCorpus],
    given: Mapping[str, str | None],
) -> bool:
    """Puts on record what is asked for, or compares it with the record that is there.

    What an attempt with other settings or text left behind is removed, as long as it has learned
    nothing: has neither checkpoint nor model. Token files stay where only the training is another.

    Args:
        run: the directory.
        recipe: as it is asked for.
        corpora: the parts of the text.
        given: a hash of each thing beside the text: "start", "tokenizer" and "vectors".

    Returns:
        Whether all is there that training needs, for these settings and this text.

    Raises:
        ConfigError: if a run of other settings has learned something.
        DataError: if one of other text has.
    """
    requested = json.loads(json.dumps(to_dict(recipe)))
    text = {
        f"{part} of {language}" if language else part: one.fingerprint()
        for part, corpus in corpora.items()
        for language, one in by_language(corpus)
    }
    if Path(recipe.data.spans).is_file():
        text["spans"] = digest_file(Path(recipe.data.spans)).hex()
    asked = {"requested": requested, "text": text, **given}
    record = read_json(run / _RECORD) if (run / _RECORD).is_file() else None
    learned = any((run / name).is_file() for name in ("checkpoints/last", "model.safetensors"))
    if record is not None and (learned or _same(record, asked)):
        _refuse_other_settings(run, record["requested"], requested)
        for origin in ("start", "vectors"):
            if record.get(origin, given[origin]) != given[origin]:
                other = getattr(recipe, origin)
                raise ConfigError(
                    f"{run} holds a run that went on from other weights than {other} has; give the "
                    f"{origin} it was begun with to resume it, or choose another directory with -o"
                )
        _refuse_other_text(run, record.get("text", text), text)
        return record["recipe"] is not None
    if record is not None and not _same(_of_text(record), _of_text(asked)):
        (run / "tokenizer.json").unlink(missing_ok=True)
        shutil.rmtree(run / "data", ignore_errors=True)
    _write(run, {"recipe": None, **asked})
    return False


def _same(record: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return all(record.get(key) == value for key, value in asked.items())


def _of_text(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the tokenizer and the token files depend on, or may."""
    training = record["requested"]["training"]
    requested = {**record["requested"], "training": {"seed": training["seed"]}}
    return {
        "requested": requested,
        "text": record.get("text"),
        "tokenizer": record.get("tokenizer"),
    }


def _refuse_other_settings(run: Path, recorded: Any, requested: Any) -> None:
    # Settings that came after the run was begun have their defaults.
    asked = from_dict(Recipe, recorded, where=str(run / _RECORD))
    before = json.loads(json.dumps(to_dict(asked)))
    for origin in ("start", "vectors"):
        if None not in (requested[origin], before[origin]):  # known by its weights
            before[origin] = requested[origin]
    if requested != before:
        raise ConfigError(
            f"{run} holds a run with other settings ({', '.join(_differences(requested, before))});"
            " give the settings it was started with to resume it, or choose another directory with "
            "-o"
        )


def _refuse_other_text(run: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    other = [part for part in sorted({*before, *now}) if before.get(part) != now.get(part)]
    if other:
        raise DataError(
            f"{run} holds a run that was begun with other text ({', '.join(other)}): files were "
            "changed, added or taken away, or are read in another way; give the text it was "
            "started with to resume it, or choose another directory with -o"
        )


def _differences(new: Any, old: Any, place: str = "") -> list[str]:
    if isinstance(new, dict) and isinstance(old, dict):
        found = []
        for key in sorted({*new, *old}):
            inner = f"{place}.{key}" if place else key
            found += _differences(new.get(key), old.get(key), inner)
        return found
    return [] if new == old else [f"{place}: {old} there, {new} now"]


def _write(run: Path, record: Mapping[str, Any]) -> None:
    write_text(run / _RECORD, json.dumps({**record, "firth": __version__}, indent=1))
