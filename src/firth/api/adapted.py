"""`adapt` and `AdaptedModel`: a language model taught a task, for several seeds, saved whole."""

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from firth.adaptation import ADAPTATIONS, FineTuning, Frozen
from firth.adaptation.fitting import Fitted, with_restarts
from firth.adaptation.network import AdaptedNetwork, EncodedExamples, score_examples
from firth.api.language_model import LanguageModel
from firth.atomic import write_file, write_text
from firth.config import from_dict, read_json, to_dict
from firth.device import Precision
from firth.errors import ConfigError, DataError, DivergedError
from firth.inference.forward import Engine
from firth.interop.files import refuse_to_overwrite
from firth.interop.huggingface import (
    LoadedModel,
    ProblemType,
    save_model,
    stock_family,
    stock_head,
)
from firth.models import Bert
from firth.models.mix import LayerMix, Pooling, SequenceHead
from firth.protocols import Example, Report, Text
from firth.tasks import TASKS
from firth.tasks.classification import Classification, Kind
from firth.tasks.metrics import mean_and_interval
from firth.text.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

RECORD = "adaptation.json"
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


@dataclass(frozen=True)
class AdaptedModel:
    """A language model adapted to a task: predicts, is evaluated, is saved and loaded whole."""

    network: AdaptedNetwork
    task: Classification
    tokenizer: Tokenizer
    adaptation: FineTuning | Frozen
    seeds: tuple[SeedResult, ...] = ()
    precision: Precision = "auto"

    @cached_property
    def engine(self) -> Engine:
        """The network, ready to run."""
        return Engine.of(self.network, self.precision, self.adaptation.max_length)

    def scores(self, examples: Sequence[Example]) -> np.ndarray:
        """(examples, num_outputs) scores before any softmax."""
        length = self.adaptation.max_length
        return score_examples(self.engine, EncodedExamples.of(examples, self.tokenizer, length))

    def predict(self, texts: Sequence[Text | tuple[Text, Text]]) -> list[Any]:
        """A `Prediction` for each text (or pair, where the task is about pairs)."""
        pair = self.task.text_pair is not None
        if isinstance(texts, str):
            raise ConfigError(f"expected a list of texts, found one string: [{texts[:40]!r}]")
        if pair and any(isinstance(text, str) or len(text) != 2 for text in texts):
            raise ConfigError("this task is about pairs of texts: give (first, second) for each")
        examples = [Example(texts=tuple(t) if pair else (t,)) for t in texts]  # type: ignore[arg-type]
        return self.task.decode(self.scores(examples))

    def evaluate(self, examples: Sequence[Example] | str | Path) -> Report:
        """Metrics on labelled examples, or on a labelled file."""
        if isinstance(examples, (str, Path)):
            examples = self.task.read(examples)
        return self.task.evaluate(self.scores(examples), examples)

    def summary(self) -> dict[str, tuple[float, float | None]]:
        """Mean over the seeds of each dev metric, with the half-width of its 95 % interval."""
        names = self.seeds[0].metrics if self.seeds else {}
        return {name: mean_and_interval([s.metrics[name] for s in self.seeds]) for name in names}

    def layer_shares(self) -> list[float] | None:
        """The learned layer mix, the embedding output first; None without one."""
        return None if self.network.mix is None else self.network.mix.shares.tolist()

    def save(self, directory: str | Path) -> None:
        """Writes everything that was trained; a stock head loads in `transformers` too."""
        path = Path(directory)
        refuse_to_overwrite(path, RECORD)
        path.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(
            path,
            model_max_length=self.adaptation.max_length,
            segments=self.network.body.config.num_segments > 0,  # type: ignore[union-attr]
        )
        network, task = self.network, self.task
        if network.mix is not None:
            mix = {name: t.detach().contiguous() for name, t in network.mix.state_dict().items()}
            write_file(path / "mix.safetensors", lambda temporary: save_file(mix, temporary))
        save_model(
            path,
            network.body,  # type: ignore[arg-type]
            vocabulary=self.tokenizer.vocabulary,
            firth={},
            head=_unstandardised(network.head, task),
            labels=task.labels,
            problem_type=_PROBLEM_TYPES[task.kind],
            own_form=network.mix is not None,  # transformers would load it without the mix
        )
        record = {
            "task": to_dict(task),
            "adaptation": to_dict(self.adaptation),
            "seeds": to_dict(list(self.seeds)),
        }
        write_text(path / RECORD, json.dumps(record, indent=1))


def _unstandardised(head: SequenceHead, task: Classification) -> SequenceHead:
    """The head in the task's own units: regression is trained on standardised values."""
    if task.shift == 0.0 and task.scale == 1.0:
        return head
    head = copy.deepcopy(head)
    with torch.no_grad():
        head.out.weight.mul_(task.scale)
        head.out.bias.mul_(task.scale).add_(task.shift)
    return head


def adapted_from(loaded: LoadedModel, path: Path, precision: Precision) -> AdaptedModel:
    """The adapted model of a directory whose weights are `loaded`.

    One that firth did not write has no record of its task: that is taken from its labels.
    """
    assert loaded.head is not None
    tokenizer = Tokenizer.load(path)
    if not (path / RECORD).is_file():
        kinds: dict[str, Kind] = {name: kind for kind, name in _PROBLEM_TYPES.items()}
        kind = kinds[loaded.problem_type or "single_label_classification"]
        return AdaptedModel(
            AdaptedNetwork(loaded.model, loaded.head),
            Classification(kind=kind, labels=loaded.labels if kind != "regression" else ()),
            tokenizer,
            FineTuning(max_length=loaded.model.config.max_length),
            precision=precision,
        )
    record = read_json(path / RECORD)
    methods = {cls.__name__: cls for cls in ADAPTATIONS.values()}
    adaptation = from_dict(methods[record["adaptation"]["type"]], record["adaptation"])
    task = from_dict(Classification, record["task"], where=str(path / RECORD))
    return AdaptedModel(
        AdaptedNetwork(loaded.model, loaded.head, _load_mix(path, adaptation)),
        replace(task, shift=0.0, scale=1.0),  # folded into the head when it was saved
        tokenizer,
        adaptation,
        tuple(from_dict(SeedResult, seed) for seed in record["seeds"]),
        precision,
    )


def _load_mix(path: Path, adaptation: FineTuning | Frozen) -> LayerMix | None:
    if not isinstance(adaptation, Frozen):
        return None
    weights = load_file(path / "mix.safetensors")
    mix = LayerMix(len(weights["weights"]), layer_norm=adaptation.layer_norm)
    mix.load_state_dict(weights)
    return mix


@dataclass(frozen=True)
class _Data:
    train: tuple[list[Example], EncodedExamples]
    dev: tuple[list[Example], EncodedExamples]


def adapt(
    lm: LanguageModel,
    task: Classification,
    train: Sequence[Example] | str | Path,
    adaptation: FineTuning | Frozen | None = None,
    *,
    dev: Sequence[Example] | str | Path | None = None,
    seeds: Sequence[int] = (0,),
) -> AdaptedModel:
    """Teaches a copy of a language model a task; the model itself stays as it was.

    Args:
        lm: the language model.
        task: what to learn; its labels are fixed from the training examples.
        train: labelled examples, or a file of them.
        adaptation: how; full fine-tuning by default.
        dev: labelled examples to stop on and to choose by; by default a tenth of `train`.
        seeds: of initialisation and order; the seed that is best on dev is kept, all are reported.

    Returns:
        The adapted model.

    Raises:
        DataError: if a file cannot be read, or there are too few examples.
        DivergedError: if every seed, restarts included, gave a degenerate run.
    """
    if not seeds:
        raise ConfigError("seeds is empty; give at least one seed, for instance (0,)")
    adaptation = adaptation or FineTuning()
    train = task.read(train) if isinstance(train, (str, Path)) else list(train)
    dev = task.read(dev) if isinstance(dev, (str, Path)) else dev
    if dev is None:
        train, dev = _hold_out(train)
    task = _with_labels(task, train, dev)
    length = min(adaptation.max_length, lm.max_length)
    data = _Data(
        (list(train), EncodedExamples.of(train, lm.tokenizer, length)),
        (list(dev), EncodedExamples.of(dev, lm.tokenizer, length)),
    )
    results = [_fit_seed(lm, task, data, adaptation, seed) for seed in seeds]
    if all(fitted.degenerate for fitted in results):
        raise DivergedError(
            f"every run was degenerate (dev {results[0].report.main} "
            f"{results[0].report.score:.3f}); lower the learning rate (now {adaptation.lr:g}), "
            "train longer, or look at the labels"
        )
    best = max(results, key=lambda fitted: (not fitted.degenerate, fitted.report.score))
    network = _network(lm, task, adaptation, best.seed)
    network.load_state_dict(best.weights, strict=False)
    seen = tuple(
        SeedResult(seed=f.seed, metrics=f.report.metrics, steps=f.steps, degenerate=f.degenerate)
        for f in results
    )
    return AdaptedModel(
        network.eval(),
        task,
        lm.tokenizer,
        replace(adaptation, max_length=length),
        seen,
        lm.precision,
    )


def _with_labels(
    task: Classification, train: Sequence[Example], dev: Sequence[Example]
) -> Classification:
    """The task with the labels of both parts; a rare one may be in dev alone."""
    both = train if task.kind == "regression" else [*train, *dev]
    return task.fit_labels(both)


def _pooling(lm: LanguageModel) -> Pooling:
    """What the head sees of a sequence, where nothing else is asked for."""
    if lm.causal:
        return "mean" if lm.fills else "last"
    first = isinstance(lm.model, Bert) and stock_family(lm.model.config) != "modernbert"
    return "first" if first else "mean"


def _network(
    lm: LanguageModel, task: Classification, adaptation: FineTuning | Frozen, seed: int
) -> AdaptedNetwork:
    torch.manual_seed(seed)
    config = lm.model.config
    pooling = _pooling(lm)
    if isinstance(adaptation, FineTuning) and adaptation.pooling != "auto":
        pooling = adaptation.pooling
    head = stock_head(config, task.num_outputs, adaptation.dropout, pooling=pooling)
    network = adaptation.network(lm.model, head, seed)
    return network.to(next(lm.model.parameters()).device)


def _fit_seed(
    lm: LanguageModel,
    task: Classification,
    data: _Data,
    adaptation: FineTuning | Frozen,
    seed: int,
) -> Fitted:
    def run(one: int) -> Fitted:
        network = _network(lm, task, adaptation, one)
        fitted = adaptation.fit(network, task, data.train, data.dev, one)
        logger.info(
            "seed %d: dev %s %.4f after %d steps",
            one,
            fitted.report.main,
            fitted.report.score,
            fitted.steps,
        )
        return fitted

    return with_restarts(run, seed, adaptation.restarts)


def _hold_out(examples: list[Example], share: float = 0.1) -> tuple[list[Example], list[Example]]:
    if len(examples) < 20:
        raise DataError(
            f"{len(examples)} labelled examples are too few to hold a dev part out; give one with "
            "--dev"
        )
    order = np.random.default_rng(0).permutation(len(examples))
    count = max(5, round(share * len(examples)))
    logger.info("no dev examples were given: %d of the training examples are held out", count)
    held = {int(i) for i in order[:count]}
    return (
        [e for i, e in enumerate(examples) if i not in held],
        [e for i, e in enumerate(examples) if i in held],
    )


def read_task(name: str, **settings: Any) -> Classification:
    """The task called `name` with its settings.

    Raises:
        ConfigError: if there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return from_dict(TASKS[name], settings)
