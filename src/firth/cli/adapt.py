"""`firth adapt`."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from firth.adaptation import ADAPTATIONS, FineTuning, Frozen, GradualUnfreezing
from firth.api import AdaptedModel
from firth.api import adapt as adapt_model
from firth.api.adapted import RECORD, AnyTask
from firth.api.adapting import read_task
from firth.atomic import need_writable
from firth.cli.models import language_model
from firth.cli.options import AsJson, Device, Model, Truth, parse
from firth.errors import ConfigError, Interrupted
from firth.interop.files import refuse_to_overwrite
from firth.protocols import Example
from firth.tasks import TASKS
from firth.tasks.classification import Classification
from firth.training.run import interruptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Teach a model your task from a labelled file (.gz and .zst too): texts and labels in .csv,
    .tsv or .jsonl, tagged words in .conllu, .conll, other columns or .jsonl.

    The settings of an adaptation: firth adapt finetune --help (frozen and gradual likewise).
    """

    model: Model
    train: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TRAIN")]
    """Labelled examples."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Where the adapted model goes."""
    overwrite: bool = False
    """Replace an adapted model that is there."""
    dev: str | None = None
    """Examples to stop on and to choose by; by default a tenth of the training file."""
    test: str | None = None
    """Examples to evaluate the adapted model on at the end."""
    task: Literal["classification", "tagging"] = "classification"
    """Labels on texts, or tags on words."""
    text: str | None = None
    """Column of the text: a name, or a number counted from 1; by default "text". Of words: by
    default 1, in .conllu 2, in .jsonl "words"."""
    text_pair: str | None = None
    """Column of the second text, for sentence pairs."""
    label: str | None = None
    """Column of the label, by default "label". Of tags: by default the last, in .conllu upos, in
    .jsonl "tags"."""
    kind: Literal["single", "multi_label", "regression"] | None = None
    """One label (the default), any number of labels, or a number."""
    spans: Truth = None
    """Whether tags mark spans, as B-PER and I-PER do; by default as they look."""
    metric: str | None = None
    """Metric to choose by; by default accuracy, micro F1 or Spearman's rho, by kind; of tags F1 of
    spans where they mark any, else accuracy."""
    quotes: Literal["auto", "literal", "standard"] | None = None
    """Whether quote characters are ordinary text (literal, as in GLUE's files) or enclose cells."""
    header: Truth = None
    """Whether the first row of a .csv or .tsv file has the names of the columns; by default it has
    unless all columns are given by number."""
    seeds: int = 1
    """How many seeds to train; all are reported, the best on dev is kept."""
    device: Device = "auto"
    json: AsJson = False
    how: Annotated[
        Annotated[FineTuning, tyro.conf.subcommand("finetune", prefix_name=False)]
        | Annotated[Frozen, tyro.conf.subcommand("frozen", prefix_name=False)]
        | Annotated[GradualUnfreezing, tyro.conf.subcommand("gradual", prefix_name=False)],
        tyro.conf.arg(name=""),
    ]


def adapt(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    try:
        options = parse(Options, arguments, "adapt")
    except SystemExit as stop:
        if stop.code:
            _explain_order(arguments)
        raise
    _check_output(Path(options.output), options.overwrite)
    lm = language_model(options.model, device=options.device)
    task = _task(options)
    test = None if options.test is None else _read_test(task, options)
    adapted = adapt_model(
        lm, task, options.train, options.how, dev=options.dev, seeds=range(options.seeds)
    )
    with interruptions() as stop:  # what took hours is not lost to a Ctrl-C while it is written
        adapted.save(options.output, overwrite=options.overwrite)
    if stop:
        raise Interrupted(f"interrupted; {options.output} is saved", int(stop[0]))
    result = {
        "output": options.output,
        "seeds": len(adapted.seeds),
        "dev": {
            name: {"mean": mean, "interval": half}
            for name, (mean, half) in adapted.summary().items()
        },
        "degenerate_runs": sum(seed.degenerate for seed in adapted.seeds),
        "layer_shares": adapted.layer_shares(),
        "output_layer_shares": adapted.layer_shares("output"),
    }
    if test is not None:
        result["test"] = adapted.evaluate(test).metrics
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _print(adapted, result.get("test", {}), options.output)


def _task(options: Options) -> AnyTask:
    """The task of the options.

    Raises:
        ConfigError: for an option of another task.
    """
    names = ("text", "text_pair", "label", "kind", "spans", "metric", "quotes", "header")
    given = {n: value for n in names if (value := getattr(options, n)) is not None}
    own = {one.name for one in fields(TASKS[options.task])}
    for name in given.keys() - own:
        flag, (other,) = name.replace("_", "-"), TASKS.keys() - {options.task}
        raise ConfigError(f"--{flag} is for --task {other}, and this is {options.task}")
    return read_task(options.task, **given)


def _explain_order(arguments: Sequence[str]) -> None:
    """Says of an option that stands behind the adaptation, and is not the adaptation's, where to
    put it.

    Raises:
        ConfigError: if there is one.
    """
    places = [place for place, word in enumerate(arguments) if word in ADAPTATIONS]
    if not places:
        return
    chosen = places[-1]
    name = arguments[chosen]
    own = {one.name for one in fields(ADAPTATIONS[name])}
    for word in arguments[chosen + 1 :]:
        option = word.partition("=")[0].removeprefix("--").replace("-", "_")
        general = word.startswith("--") and option in {one.name for one in fields(Options)}
        if (general and option not in own) or word == "-o":
            raise ConfigError(f"{word} is no option of {name}; put it before {name}")


def _check_output(path: Path, overwrite: bool) -> None:
    """Says before training what saving the model would run into."""
    refuse_to_overwrite(path, RECORD, overwrite=overwrite)
    need_writable(path, directory=True)


def _read_test(task: AnyTask, options: Options) -> list[Example]:
    """The test examples; an error in them, or a label that training will not know, comes now."""
    test = task.read(options.test or "")
    if not isinstance(task, Classification):  # a tag that training never saw counts as an error
        return test
    known = [one for file in (options.train, options.dev) if file for one in task.read(file)]
    task.fit_labels(known).targets(test)
    return test


def _print(adapted: AdaptedModel, test: dict[str, float], output: str) -> None:
    for name, (mean, half) in adapted.summary().items():
        print(f"dev {name}\t{mean:.4f}" + ("" if half is None else f" ± {half:.4f}"))
    which = "\tof the seed that is best on dev" if len(adapted.seeds) > 1 else ""
    for name, value in test.items():
        print(f"test {name}\t{value:.4f}{which}")
    for name, shares in (
        ("layer mix", adapted.layer_shares()),
        ("layer mix at the output", adapted.layer_shares("output")),
    ):
        if shares is not None:
            print(f"{name}\t" + " ".join(f"{share:.2f}" for share in shares))
    print(f"\nNext: firth predict {shlex.quote(output)} FILE", file=sys.stderr)
