"""`firth predict` and `firth evaluate`, of a language model in `suites.py` and `texts.py`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from firth.api import AdaptedModel
from firth.api.adapted import AnyTask
from firth.atomic import need_writable
from firth.cli.models import adapted_model
from firth.cli.options import Device, Truth, parse, print_rows, read_lines
from firth.cli.suites import SimilaritySuite, evaluate_suite, print_report
from firth.cli.texts import evaluate_texts
from firth.errors import ConfigError
from firth.interop.files import MODEL_FILES
from firth.protocols import Example
from firth.tasks.classification import Classification
from firth.tasks.columns import looks_like_columns
from firth.tasks.suites import Suite
from firth.tasks.tagging import Tagged
from firth.text.files import file_format


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What of a file's layout is other than the training file's."""

    text: str | None = None
    """Column of the texts, or of the words, where it is another than in the training file."""
    text_pair: str | None = None
    """The same for the second text of pairs."""
    header: Truth = None
    """Whether the first row of a .csv, .tsv or tagged file has the names of the columns."""


@dataclass(frozen=True, kw_only=True)
class LabelledLayout(Layout):
    """The same of a file with labels."""

    label: str | None = None
    """Column of the labels, or of the tags, where it is another than in the training file."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Label texts: one prediction a line, as label and probability; of tagged words one a line, and
    an empty line behind each sentence.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """An adapted model."""
    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[FILE]")] = "-"
    """A text a line (.txt, or - for stdin), or a file with the training file's text columns."""
    layout: Annotated[Layout, tyro.conf.arg(name="")] = Layout()
    device: Device = "auto"
    json: bool = False
    """One JSON object a line."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure an adapted model on a labelled file, a language model on minimal pairs, or an
    encoder-decoder on texts and what they should become.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """An adapted model; with --suite or --target a language model."""
    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """Labelled examples, with the training file's columns; with --suite a file or folder of pairs
    of sentences; with --target a text a line."""
    layout: Annotated[LabelledLayout, tyro.conf.arg(name="")] = LabelledLayout()
    target: str | None = None
    """What the lines of the file should become: prints BLEU and chrF."""
    beams: int = 1
    """With --target: hypotheses kept at each step."""
    length_penalty: float = 1.0
    """With --target and several beams: ranks by log P / length^penalty."""
    max_tokens: int = 256
    """With --target: the most that is written for a line."""
    outputs: str | None = None
    """With --target: a file for what the model wrote."""
    overwrite: bool = False
    """With --outputs: replace a file that is there."""
    suite: Suite | SimilaritySuite | None = None
    """Pairs of a good and a bad sentence: "blimp" in BLiMP's own files, "pairs" in files with
    columns good and bad; "word-similarity": lines of two words and a score."""
    limit: int | None = None
    """With --suite: of each paradigm only the first pairs, for a quick look."""
    within_word: bool = False
    """With --suite, of a masked model: hide the rest of a token's word too (Kauf & Ivanova
    2023)."""
    pseudo: bool = False
    """With --suite, of a hybrid model or ELMo: score by filling blanks instead of left to right."""
    device: Device = "auto"
    json: bool = False
    """Print one JSON object, with the details."""


def predict(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    options = parse(Predict, arguments, "predict")
    model = adapted_model(options.model, device=options.device)
    examples = _examples(model, options)
    predictions = model.task.decode(model.scores(examples), examples)
    sentences = [one for one in predictions if isinstance(one, Tagged)]
    if sentences and not options.json:
        for sentence in sentences:
            print_rows(_word_rows(sentence), as_json=False)
            print()
        return
    rows = [prediction.to_dict() for prediction in predictions]
    separator = getattr(model.task, "label_separator", ",")
    shown = rows if options.json else [_short(row, separator) for row in rows]
    print_rows(shown, as_json=options.json)


def _laid_out(task: AnyTask, layout: Layout) -> AnyTask:
    """The task for a file with other columns than the training file's."""
    given = {name: value for name, value in vars(layout).items() if value is not None}
    if "text_pair" in given and getattr(task, "text_pair", None) is None:
        raise ConfigError("--text-pair is for models of pairs, and this one is of single texts")
    # Columns by other names or numbers say by themselves whether there is a header.
    return replace(task, **({"header": None} | given)) if given else task


def _examples(model: AdaptedModel, options: Predict) -> list[Example]:
    """The lines of a text, or the texts of a table."""
    file, task = options.file, _laid_out(model.task, options.layout)
    of_lines = file == "-" or not Path(file).suffix or file_format(Path(file))[0] == ".txt"
    tagged = task.unit == "word" and file != "-"  # words in columns may be called .txt
    if not of_lines or (tagged and options.layout != Layout()):
        return task.read(file, labelled=False)
    if options.layout != Layout():
        raise ConfigError(f"{file}: --text, --text-pair and --header are about columns, not lines")
    lines = read_lines(file)
    if isinstance(model.task, Classification) and model.task.text_pair is not None:
        columns = f"{model.task.text!r} and {model.task.text_pair!r}"
        raise ConfigError(
            f"{file}: this model is about pairs of texts, and a line is one; give a .tsv, .csv or "
            f".jsonl file with the columns {columns}"
        )
    if model.task.unit == "word" and looks_like_columns(lines):
        raise ConfigError(
            f"{file}: looks like words in columns, and .txt is read as a text a line; say which "
            "column has the words (--text 1), or give it a name that ends in .conll"
        )
    return [model.task.example(line) for line in lines]


def _word_rows(sentence: Tagged) -> Iterator[dict[str, Any]]:
    for word, tag in zip(sentence.words, sentence.tags, strict=True):
        yield {"word": word, "tag": tag}


def _short(row: dict[str, Any], separator: str) -> dict[str, Any]:
    """A prediction as one line: the label with its probability, where it has one."""
    label, shares = row["label"], row.get("probabilities")
    if isinstance(label, (list, tuple)):
        return {"label": separator.join(label)}
    if isinstance(label, float):
        return {"label": f"{label:.6g}"}
    return {"label": label, "probability": shares[label]} if shares else {"label": label}


def _check_options(options: Evaluate) -> None:
    """Refuses options that would have no effect."""
    if options.layout != LabelledLayout() and (options.suite or options.target is not None):
        raise ConfigError("--text, --text-pair, --label and --header are about labelled examples")
    if options.target is not None and options.suite is not None:
        raise ConfigError("--suite and --target measure different things; give one of them")
    if options.suite is None and (
        options.limit is not None or options.within_word or options.pseudo
    ):
        raise ConfigError("--limit, --within-word and --pseudo are about pairs; add --suite")
    if options.target is None:
        if options.beams != 1 or options.outputs is not None:
            raise ConfigError("--beams and --outputs are about written texts; add --target")
    elif options.outputs is not None:
        if Path(options.outputs).is_file() and not options.overwrite:
            raise ConfigError(
                f"{options.outputs} is there already; choose another name, or give --overwrite"
            )
        own = [str(Path(options.model) / name) for name in MODEL_FILES]
        need_writable(options.outputs, inputs=(options.file, options.target, *own))
    if options.overwrite and options.outputs is None:
        raise ConfigError("--overwrite is about --outputs; add it, or leave --overwrite out")
    if options.length_penalty != 1.0 and options.beams == 1:
        raise ConfigError("--length-penalty is about beam search; add --target and --beams")


def evaluate(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    options = parse(Evaluate, arguments, "evaluate")
    _check_options(options)
    if options.target is not None:
        evaluate_texts(options)
        return
    if options.suite:
        evaluate_suite(options)
        return
    model = adapted_model(options.model, device=options.device)
    report = model.evaluate(_laid_out(model.task, options.layout).read(options.file))
    if options.json:
        print_report(report)
        return
    print(f"examples\t{report.num_examples}")
    for name, value in report.metrics.items():
        print(f"{name}\t{value:.4f}")
