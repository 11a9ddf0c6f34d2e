"""`AdaptedModel`: a language model that was taught a task, saved and loaded whole."""

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from firth.adaptation import ADAPTATIONS, Adaptation
from firth.adaptation.finetuning import FineTuning
from firth.adaptation.network import AdaptedNetwork, EncodedExamples, score_examples
from firth.api.language_model import show_words
from firth.atomic import write_file, write_text
from firth.config import from_dict, read_json, to_dict
from firth.device import Precision
from firth.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from firth.inference.forward import Engine, check_numbers, up_to_date
from firth.interop.files import ADAPTED, TASK_NETWORK, write_model
from firth.interop.huggingface import (
    LoadedModel,
    ProblemType,
    save_model,
    stock_family,
    stock_head,
)
from firth.models import Bert, LanguageModelNetwork, Static, described
from firth.models.heads import Head, WordHead
from firth.models.mix import Pooling, SequenceHead, WordPooling
from firth.protocols import Context, Example, Report, Scores, Text
from firth.tasks import TASKS
from firth.tasks.classification import Classification, Kind
from firth.tasks.metrics import mean_and_interval
from firth.tasks.tagging import Tagging
from firth.text.tokenizers import Tokenizer
from firth.text.words import check_texts

AnyTask = Classification | Tagging

RECORD = ADAPTED
"""What is learned, how, and what each seed reached."""

_PROBLEM_TYPES: dict[Kind, ProblemType] = {
    "single": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """What one seed reached on dev."""

    seed: int
    metrics: dict[str, float]
    steps: int
    degenerate: bool


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A language model adapted to a task: predicts, is evaluated, is saved and loaded whole."""

    network: AdaptedNetwork
    task: AnyTask
    tokenizer: Tokenizer
    adaptation: Adaptation
    seeds: tuple[SeedResult, ...] = ()
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        show_words(self.network.body, self.tokenizer)

    @property
    def engine(self) -> Engine:
        """The network, ready to run, with the weights that it has now."""
        make = partial(Engine.of, self.network, self.precision, self.adaptation.max_length)
        return up_to_date(self, "_engine", self.network, make)

    def __repr__(self) -> str:
        found = {name: round(mean, 4) for name, (mean, _) in self.summary().items()}
        labels = f" of {len(self.task.labels)} labels" if self.task.labels else ""
        what = f"{described(self.network.body)}, {type(self.task).__name__}{labels}"
        return f"AdaptedModel({what}, dev {found})"

    def scores(self, examples: Sequence[Example]) -> Scores:
        """Scores before any softmax: (examples, num_outputs), or for tags (words, num_outputs) of
        each example.

        Raises:
            ConfigError: for texts in place of examples; `predict` takes these.
        """
        if not all(isinstance(one, Example) for one in examples):
            raise ConfigError("expected examples (firth.Example); for texts there is predict")
        model: Any = self.network.body
        length = self.adaptation.max_length
        data = encoded(
            self.task, examples, model=model, tokenizer=self.tokenizer, max_length=length
        )
        return score_examples(self.engine, data)

    def predict(self, texts: Sequence[Text | tuple[Text, Text]]) -> list[Any]:
        """A `Prediction` for each text (or pair, where the task is about pairs).

        For tags a `Tagged` for each list of words, or for each string, which is cut into words.

        Raises:
            DivergedError: if a score is no number.
        """
        check_texts(texts, once=True)
        examples = [self.task.example(text) for text in texts]
        return self.task.decode(_numbers(self.scores(examples)), examples)

    def evaluate(self, examples: Sequence[Example] | str | Path) -> Report:
        """Metrics on labelled examples, or on a labelled file.

        Raises:
            DataError: if the file cannot be read, or there is nothing to measure on.
            DivergedError: if a score is no number.
        """
        examples = labelled_examples(self.task, examples)
        if not any(map(len, scores := _numbers(self.scores(examples)))):
            what = "examples" if not examples else f"words in the {len(examples)} sentences"
            raise DataError(f"there are no {what} to evaluate on; expected at least one")
        return self.task.evaluate(scores, examples)

    def summary(self) -> dict[str, tuple[float, float | None]]:
        """Mean over the seeds of each dev metric, with the half-width of its 95 % interval."""
        names = self.seeds[0].metrics if self.seeds else {}
        return {name: mean_and_interval([s.metrics[name] for s in self.seeds]) for name in names}

    def layer_shares(self, at: Literal["input", "output"] = "input") -> list[float] | None:
        """The learned layer mix, the embedding output first; None without one.

        Args:
            at: the mix that the task network reads, or the second one, beside its states.
        """
        mix = self.network.mix if at == "input" else self.network.output_mix
        if mix is None:
            return None
        assert self.network.layers is not None
        shares = [0.0] * (1 + len(self.network.body.layers))  # type: ignore[arg-type]
        for layer, share in zip(self.network.layers, mix.shares.tolist(), strict=True):
            shares[layer] = share
        return shares

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Writes everything that was trained; a stock head loads in `transformers` too.

        Args:
            directory: where to.
            overwrite: replace an adapted model that is there.

        Raises:
            ConfigError: if the directory holds a model that may not be replaced.
            ResourceError: if it cannot be written; the old model is still there then.
        """
        write_model(directory, self._write, RECORD, overwrite=overwrite)

    def _write(self, path: Path) -> None:
        self.tokenizer.save(
            path,
            model_max_length=self.adaptation.max_length,
            segments=self.network.body.config.num_segments > 1,  # type: ignore[union-attr]
        )
        network, task, record = self.network, self.task, {}
        stock = None
        if network.mix is None and isinstance(network.head, SequenceHead):
            stock = network.head
            if _is_standardised(task):
                record = {"bias": stock.out.bias.item()}
                stock = _unstandardised(stock, task)
        save_model(
            path,
            network.body,  # type: ignore[arg-type]
            vocabulary=self.tokenizer.vocabulary,
            firth={},
            head=stock,
            labels=() if stock is None else task.labels,
            problem_type=_PROBLEM_TYPES[task.kind] if isinstance(task, Classification) else None,
            own_form=stock is None,  # transformers would load it without the task
        )
        if stock is None:
            tensors = _own_tensors(network)
            write_file(path / TASK_NETWORK, lambda temporary: save_file(tensors, temporary))
        record |= {
            "task": to_dict(task),
            "adaptation": to_dict(self.adaptation),
            "seeds": to_dict(list(self.seeds)),
        }
        write_text(path / RECORD, json.dumps(record, indent=1))


def _numbers(scores: Scores) -> Scores:
    for rows in (scores,) if isinstance(scores, np.ndarray) else scores:
        check_numbers(torch.as_tensor(rows))
    return scores


def encoded(
    task: AnyTask,
    examples: Sequence[Example],
    *,
    model: LanguageModelNetwork,
    tokenizer: Tokenizer,
    max_length: int,
) -> EncodedExamples:
    """Examples as a model and the task's head read them."""
    bare = isinstance(model, Static)
    return EncodedExamples.of(
        examples, tokenizer, max_length, task.unit, context=model.context, bare=bare
    )


def labelled_examples(task: AnyTask, given: Sequence[Example] | str | Path) -> list[Example]:
    """The examples of a labelled file, or those given.

    Raises:
        DataError: if the file cannot be read, or what was given are no examples.
    """
    if isinstance(given, (str, Path)):
        return task.read(given)
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ConfigError(
            f"expected examples or the name of a file of them, found {str(given)[:40]!r} "
            f"({type(given).__name__}); without dev examples a tenth of the training ones is taken"
        )
    examples = list(given)
    for place, one in enumerate(examples):
        if not isinstance(one, Example):
            raise DataError(
                f"example {place} is {str(one)[:60]!r} ({type(one).__name__}), expected a "
                'firth.Example, such as Example(texts=("The tide is in.",), label="true")'
            )
        if problem := task.problem(one):
            raise DataError(f"example {place}: {problem}")
    return examples


def _is_standardised(task: AnyTask) -> TypeGuard[Classification]:
    """Whether the network's scores are not in the units of the labels."""
    return isinstance(task, Classification) and (task.shift, task.scale) != (0.0, 1.0)


def _unstandardised(head: SequenceHead, task: Classification) -> SequenceHead:
    """The head in the units of the labels, as `transformers` shall have it."""
    head = copy.deepcopy(head)
    with torch.no_grad():
        head.out.weight.mul_(task.scale)
        head.out.bias.mul_(task.scale).add_(task.shift)
    return head


def _standardise(head: SequenceHead, task: Classification, bias: float) -> None:
    """Undoes `_unstandardised`: float32 has no room for the last digits of a large `shift`."""
    with torch.no_grad():
        head.out.weight.div_(task.scale)
        head.out.bias.fill_(bias)


def adapted_from(
    loaded: LoadedModel, tokenizer: Tokenizer, path: Path, precision: Precision
) -> AdaptedModel:
    """The adapted model of a directory whose weights are `loaded`.

    One that firth did not write has no record of its task: that is taken from its labels.
    """
    if not (path / RECORD).is_file():
        assert loaded.head is not None
        kinds: dict[str, Kind] = {name: kind for kind, name in _PROBLEM_TYPES.items()}
        kind = kinds[loaded.problem_type or "single_label_classification"]
        if kind == "regression" and loaded.head.out.out_features != 1:
            raise UnsupportedError(
                f"{path}: a regression of {loaded.head.out.out_features} values at once; a task "
                "here has one"
            )
        return AdaptedModel(
            AdaptedNetwork(loaded.model, loaded.head).eval(),
            Classification(kind=kind, labels=loaded.labels if kind != "regression" else ()),
            tokenizer,
            FineTuning(max_length=loaded.model.config.max_length),
            precision=precision,
        )
    record = read_json(path / RECORD)
    methods = {cls.__name__: cls for cls in ADAPTATIONS.values()}
    adaptation = from_dict(methods[record["adaptation"]["type"]], record["adaptation"])
    tasks = {cls.__name__: cls for cls in TASKS.values()}
    task = from_dict(tasks[record["task"]["type"]], record["task"], where=str(path / RECORD))
    if loaded.head is not None:
        bias = record.get("bias")
        _check_record(path, loaded, task, bias)
        if bias is not None and _is_standardised(task):
            _standardise(loaded.head, task, bias)
        network = AdaptedNetwork(loaded.model, loaded.head).eval()
    else:
        network = _load_network(path, loaded.model, task, adaptation)
    return AdaptedModel(
        network,
        task,
        tokenizer,
        adaptation,
        tuple(from_dict(SeedResult, seed) for seed in record["seeds"]),
        adaptation.precision if precision == "auto" else precision,
    )


def _check_record(path: Path, loaded: LoadedModel, task: AnyTask, bias: float | None) -> None:
    """Compares the record with the model's own files, which another program may have changed."""
    assert loaded.head is not None
    outputs, labels = loaded.head.out.out_features, loaded.labels
    if _is_standardised(task):
        own = torch.tensor(math.nan if bias is None else bias).mul(task.scale).add(task.shift)
        if outputs != 1 or not torch.allclose(own, loaded.head.out.bias.cpu()):
            raise CheckpointError(
                f"{path / RECORD}: the record is of a regression, and the model was replaced "
                f"since; delete {RECORD} to load the model that is there"
            )
    if outputs != task.num_outputs or (task.labels and labels != task.labels):
        raise CheckpointError(
            f"{path / RECORD}: the record is of the labels {', '.join(task.labels) or 'none'}, and "
            f"config.json is of {', '.join(labels) or outputs}: the model was replaced since; "
            f"delete {RECORD} to load the model that is there"
        )


def _load_network(
    path: Path, model: LanguageModelNetwork, task: AnyTask, adaptation: Adaptation
) -> AdaptedNetwork:
    """The network that the record describes, with the tensors of `TASK_NETWORK`."""
    network = adaptation.assemble(model, family_head(model, task, adaptation))
    network.to(next(model.parameters()).device)
    if not (path / TASK_NETWORK).is_file():
        raise CheckpointError(
            f"{path}: no {TASK_NETWORK}, which {RECORD} speaks of; if another program has put its "
            f"model there since, delete {RECORD} to load it"
        )
    tensors = load_file(path / TASK_NETWORK)
    expected = _own_tensors(network)
    wrong = [n for n in {*tensors, *expected} if n not in tensors or n not in expected]
    if wrong:
        raise CheckpointError(
            f"{path / TASK_NETWORK}: {', '.join(sorted(wrong)[:5])} missing or unexpected; the "
            f"tensors do not fit what {RECORD} says"
        )
    network.load_state_dict(tensors, strict=False)
    return network.eval()


def _own_tensors(network: AdaptedNetwork) -> dict[str, Tensor]:
    """Everything but the body."""
    state = network.state_dict()
    return {n: t.detach().contiguous() for n, t in state.items() if not n.startswith("body.")}


_READ_LAST: dict[Context, WordPooling | None] = {"both": None, "left": "last", "right": "first"}
"""Which token a model that looks one way has read last."""


def family_head(model: LanguageModelNetwork, task: AnyTask, adaptation: Adaptation) -> Head:
    """The head of a task that suits the family of a model, with fresh weights."""
    pooling = adaptation.pooling
    last = _READ_LAST[model.context]
    if task.unit == "word":
        how = pooling if pooling != "auto" else last or "first"
        size, dropout = model.config.hidden_size, adaptation.dropout
        return WordHead(size, task.num_outputs, dropout=dropout, pooling=how)
    how = pooling if pooling != "auto" else last or _sequence_pooling(model)
    return stock_head(model.config, task.num_outputs, adaptation.dropout, pooling=how)


def _sequence_pooling(model: LanguageModelNetwork) -> Pooling:
    """What the head sees of a sequence of a model that sees both sides."""
    first = isinstance(model, Bert) and stock_family(model.config) != "modernbert"
    return "first" if first else "mean"
