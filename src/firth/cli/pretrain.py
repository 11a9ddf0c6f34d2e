"""`firth pretrain`."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from typing import Annotated, Any, Literal

import tyro

from firth.api import LanguageModel
from firth.api import pretrain as pretrain_model
from firth.api.training_text import AnyCorpus, check_pairs
from firth.atomic import need_writable
from firth.cli import first_process
from firth.cli.models import language_model
from firth.cli.options import Device, flat_settings, parse, take_settings
from firth.config import read_toml
from firth.device import prepare_process
from firth.errors import ConfigError
from firth.models import BertConfig, StaticConfig
from firth.recipes import Recipe, recipe
from firth.recipes.settings import is_own
from firth.text.corpus import Corpus
from firth.text.files import file_format
from firth.text.languages import MultilingualCorpus
from firth.text.pairs import ParallelCorpus
from firth.text.tokenizers import Tokenizer
from firth.training import BUDGETS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a language model on your text. The same command resumes a run that was stopped.

    Any setting of the recipe can follow by its dotted name, for instance --training.seed 1 or
    --objective.units word; `firth recipes show NAME` lists them.
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Name of a recipe; `firth recipes` lists them."""
    corpus: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CORPUS [CORPUS ...]")
    ]
    """Files, folders or globs: .txt, .jsonl, .csv, .tsv, .parquet, also .gz and .zst.

    Of several languages, each behind its name: de=german.txt tr=turkish/ (see data.smoothing).
    """
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """The run directory."""
    size: str | None = None
    """tiny 2x128, mini 4x256, small 4x512, medium 8x512, base 12x768, large 24x1024 (recurrent
    recipes: tiny to base, of their own shapes); by default the recipe's (mini for most)."""
    vocab: int | None = None
    """Tokens in the vocabulary; by default the recipe's (8,192 for most)."""
    config: str | None = None
    """A TOML file with settings of the recipe."""
    steps: int | None = None
    """Budget in steps."""
    tokens: int | None = None
    """Budget in tokens."""
    epochs: float | None = None
    """Budget in passes over the text."""
    minutes: float | None = None
    """Budget in minutes: throughput is measured, then the number of steps is fixed."""
    valid: tuple[str, ...] = ()
    """Held-out files, named by language as the corpus; by default one document in a hundred."""
    start: str | None = None
    """A model to go on from, with its vocabulary and shape: continued pre-training, and the second
    stage of ULMFiT (recipe ulmfit)."""
    vectors: str | None = None
    """Word vectors that the tokens begin with: a run of word2vec, fasttext or glove, or a file
    (.vec, .txt, .bin)."""
    tokenizer: str | None = None
    """A directory with a tokenizer.json, such as another run, instead of training a tokenizer: runs
    that share one have perplexities that compare."""
    target: str | None = None
    """For the recipes transformer and seq2seq: a file whose lines are what the lines of the corpus
    become."""
    valid_target: str | None = None
    """The same for the held-out file."""
    documents: Literal["auto", "file", "block", "line"] = "auto"
    """What a document is in .txt files."""
    column: str = "text"
    """Column that holds the text in .jsonl, .csv, .tsv and .parquet files."""
    errors: Literal["strict", "replace"] = "strict"
    """What to do about bytes that are not UTF-8."""
    drop_duplicates: bool = False
    """Leave out documents that are exact copies of earlier ones."""
    device: Device = "auto"
    threads: int | None = None
    """CPU threads; by default one a core."""
    tensorboard: bool = False
    """Write the curves for TensorBoard, too (extra `track`), into the run directory."""


def pretrain(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    others, settings = take_settings(arguments)
    options = parse(Options, others, "pretrain")
    if not options.corpus:
        raise ConfigError("no text was given: firth pretrain RECIPE FILES... -o RUN")
    if options.valid_target is not None and not options.valid:
        raise ConfigError(f"--valid-target {options.valid_target} needs --valid, its sources")
    if options.target is not None and options.valid and options.valid_target is None:
        raise ConfigError("--valid needs --valid-target too: what its lines become")
    chosen = _recipe(options, settings)
    check_pairs(chosen, given=options.target is not None)  # before any file is read
    need_writable(options.output, directory=True)
    prepare_process(options.threads)
    valid = _corpus(options.valid, options.valid_target, options) if options.valid else None
    pretrain_model(
        chosen,
        _corpus(options.corpus, options.target, options),
        options.output,
        valid=valid,
        tokenizer=Tokenizer.load(options.tokenizer) if options.tokenizer else None,
        start=_model(options.start, options),
        vectors=_model(options.vectors, options),
        device=options.device,
        tensorboard=options.tensorboard,
        resume_hint=resume_hint(arguments),
    )
    if not first_process():
        return
    print(options.output)
    _say_next(chosen, shlex.quote(options.output))


def resume_hint(arguments: Sequence[str]) -> str:
    """The command that goes on with a run, as this process, or all of them, was started."""
    command = shlex.join(["pretrain", *arguments])
    world, local = (os.environ.get(f"{name}WORLD_SIZE", "1") for name in ("", "LOCAL_"))
    if int(world) == 1:
        return f"firth {command}"
    nodes = f" --nnodes {int(world) // int(local)}" if world != local else ""
    return f"torchrun{nodes} --nproc-per-node {local} -m firth.cli {command}"


def _say_next(chosen: Recipe, run: str) -> None:
    look = f'generate {run} "..."'
    if isinstance(chosen.model, BertConfig):
        look = f'fill {run} "..."'
    elif isinstance(chosen.model, StaticConfig):
        look = f"export {run} vectors.vec"
    print(
        f"\nNext: firth {look} | firth inspect {run} | firth adapt {run} train.tsv -o OUT finetune",
        file=sys.stderr,
    )


def _model(path: str | None, options: Options) -> LanguageModel | None:
    return None if path is None else language_model(path, device=options.device)


def _corpus(paths: Sequence[str], target: str | None, options: Options) -> AnyCorpus:
    if target is not None:
        if len(paths) != 1:
            raise ConfigError(f"{target} needs one file of sources, and {len(paths)} were given")
        for name in ("documents", "column", "drop_duplicates"):
            if getattr(options, name) != getattr(Options, name):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is not for pairs of lines (--target); leave it out")
        return ParallelCorpus.from_files(paths[0], target, errors=options.errors)
    if by_language := _by_language(paths):
        return MultilingualCorpus.of({n: _texts(p, options) for n, p in by_language.items()})
    return _texts(paths, options)


def _by_language(paths: Sequence[str]) -> dict[str, list[str]]:
    """The paths behind each `name=`; empty where none has one."""
    named = [re.match(r"[\w-]+=.", path) is not None and not glob(path) for path in paths]
    if not any(named):
        return {}
    if not all(named):
        lacking = paths[named.index(False)]
        raise ConfigError(
            f"{lacking}: expected a language before it, as in de={lacking}, since others have one"
        )
    found = dict[str, list[str]]()
    for path in paths:
        name, _, place = path.partition("=")
        found.setdefault(name, []).append(place)
    return found


def _texts(paths: Sequence[str], options: Options) -> Corpus:
    corpus = Corpus.from_files(
        list(paths),
        documents=options.documents,
        text_column=options.column,
        errors=options.errors,
        drop_duplicates=options.drop_duplicates,
    )
    if options.column != "text" and {file_format(path)[0] for path in corpus.files} == {".txt"}:
        raise ConfigError(
            f"--column {options.column} is about tables, and {', '.join(paths)} has none; leave it "
            "out"
        )
    return corpus


def _recipe(options: Options, settings: dict[str, Any]) -> Recipe:
    """Recipe of the size, then file, then command line."""
    chosen = recipe(options.recipe, size=options.size, vocab_size=options.vocab)
    written = {} if options.config is None else read_toml(options.config)
    if (named := written.get("name", chosen.name)) != chosen.name:
        raise ConfigError(
            f"{options.config} is of the recipe {named!r} (name), and {chosen.name!r} is asked for;"
            f" give firth pretrain {named}, or take the line of the name and those of another kind "
            "of model out of the file"
        )
    if options.size is not None and {"hidden_size", "num_layers"} & {*written.get("model", ())}:
        logger.warning("%s: its shape is taken, not that of --size", options.config)
    chosen = chosen.with_settings(written, where=options.config or "")
    flags = {f"training.{name}": getattr(options, name) for name in BUDGETS}
    flags["tokenizer.vocab_size"] = options.vocab
    given = {path: value for path, value in flags.items() if value is not None}
    for path in settings.keys() & given.keys():
        flag = "--vocab" if path.startswith("tokenizer.") else f"--{path.rpartition('.')[2]}"
        raise ConfigError(f"--{path} and {flag} are the same setting; give one of them")
    _warn_of_idle(options, [*settings, *(path for path, _ in flat_settings(written))])
    return chosen.with_settings({**given, **settings})


def _warn_of_idle(options: Options, settings: Sequence[str]) -> None:
    """Says which options and settings a start or a tokenizer makes idle."""
    idle = [] if options.vocab is None else ["--vocab"]
    idle += [
        f"--{path}"
        for path in dict.fromkeys(settings)
        if path.startswith("tokenizer.")
        or (path.startswith("model.") and not is_own(path.removeprefix("model.")))
    ]
    if options.recipe == "ulmfit" and options.start is None:
        logger.warning(
            "ulmfit is the second stage, on the text of the task: give the model of the first with "
            "--start; without it training begins with random weights (as awd-lstm does, better)"
        )
    if options.start is not None and options.size is not None:
        logger.warning("--size: no effect but on the learning rate, the shape is that of --start")
    if options.tokenizer is not None and (
        trained := [flag for flag in idle if flag.startswith(("--vocab", "--tokenizer."))]
    ):
        logger.warning("%s: no effect, the tokenizer is given", ", ".join(trained))
    if options.start is not None and idle:
        logger.warning("%s: no effect, shape and tokenizer are those of --start", ", ".join(idle))
