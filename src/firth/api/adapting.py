"""`adapt`: teaching a language model a task, for several seeds."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from firth.adaptation import ADAPTATIONS, Adaptation, FineTuning, GradualUnfreezing
from firth.adaptation.fitting import Fitted, idle_settings, with_restarts
from firth.adaptation.gradual import layer_groups
from firth.adaptation.network import AdaptedNetwork, EncodedExamples
from firth.api.adapted import (
    AdaptedModel,
    AnyTask,
    SeedResult,
    encoded,
    family_head,
    labelled_examples,
)
from firth.api.language_model import LanguageModel
from firth.config import from_dict
from firth.errors import ConfigError, DataError, DivergedError
from firth.models import LanguageModelNetwork
from firth.protocols import Example
from firth.tasks import TASKS
from firth.tasks.classification import Classification
from firth.training.undisturbed import undisturbed

logger = logging.getLogger(__name__)


_SHOWN = 12
"""Labels that are listed."""
_FEW = 0.01
"""Share of texts that may be cut without a word of it."""


@dataclass(frozen=True)
class _Data:
    train: tuple[list[Example], Any]
    dev: tuple[list[Example], Any]


def adapt(
    lm: LanguageModel,
    task: AnyTask,
    train: Sequence[Example] | str | Path,
    adaptation: Adaptation | None = None,
    *,
    dev: Sequence[Example] | str | Path | None = None,
    seeds: Iterable[int] = (0,),
) -> AdaptedModel:
    """Teaches a copy of a language model a task; the model itself stays as it was.

    Ctrl-C ends training: the best of the finished seeds is given all the same, or where none is
    finished, the best weights so far.

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
        ConfigError: if `lm` is no language model, or `seeds` none or not all different.
        DataError: if a file cannot be read, or there are too few examples or none.
        DivergedError: if every seed, restarts included, gave a degenerate run.
    """
    adaptation = adaptation or FineTuning()
    seeds = _checked_seeds(seeds)
    _check_arguments(lm, task, adaptation)
    if adaptation.precision == "auto":
        adaptation = replace(adaptation, precision=lm.precision)
    of_file = isinstance(train, (str, Path))
    train, dev = _parts(task, train, dev)
    task = task.with_header() if of_file and isinstance(task, Classification) else task
    task = _with_labels(task, train, dev)
    length = min(adaptation.max_length, lm.max_length)
    make = partial(_network, lm, task, adaptation, seeds[0])
    encode = partial(encoded, task, model=lm.model, tokenizer=lm.tokenizer, max_length=length)
    parts = [encode(part) for part in (train, dev)]
    _warn_of_settings(adaptation, task, len(train), lm.model)
    _report_cuts(parts[0], length, task)
    with undisturbed(next(lm.model.parameters()).device):
        seen, held_out = (adaptation.prepare(make, part) for part in parts)
        data = _Data((train, seen), (dev, held_out))
        results = _fit_seeds(lm, task, data, adaptation, seeds)
        best = _best(results, adaptation)
        network = _network(lm, task, adaptation, best.seed)
    network.load_state_dict(best.weights, strict=False)
    return AdaptedModel(
        network.eval(),
        task,
        lm.tokenizer,
        replace(adaptation, max_length=length),
        tuple(map(_seed_result, results)),
        adaptation.precision,
    )


def _checked_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    several = isinstance(seeds, Iterable) and not isinstance(seeds, str)
    known = tuple(seeds) if several else ()
    if not known or not all(isinstance(s, Integral) and 0 <= s < 2**63 for s in known):
        found = str(known or "empty")[:60] if several else seeds
        raise ConfigError(
            f"seeds is {found}; expected a sequence of at least one, as (0, 1, 2), each 0 or more"
        )
    if len(set(known)) < len(known):
        raise ConfigError(f"seeds is {known}; the same one twice would look like certainty")
    return tuple(map(int, known))


def _check_arguments(lm: object, task: object, adaptation: object) -> None:
    if not isinstance(lm, LanguageModel):
        raise ConfigError(
            f"the model is a {type(lm).__name__}, expected a language model; of an adapted model, "
            "give the run that it came from"
        )
    for what, found, kinds in (("task", task, TASKS), ("adaptation", adaptation, ADAPTATIONS)):
        if not isinstance(found, tuple(kinds.values())):
            given = found.__name__ if isinstance(found, type) else repr(found)[:60]
            names = ", ".join(f"firth.{kind.__name__}()" for kind in kinds.values())
            raise ConfigError(f"the {what} is {given}, expected one of {names}")


def _warn_of_settings(
    adaptation: Adaptation, task: AnyTask, num_examples: int, body: LanguageModelNetwork
) -> None:
    """Says which settings are idle, and if the epochs given are few steps or leave layers out."""
    for name, reason in idle_settings(adaptation, task.unit):
        logger.warning("%s has no effect: %s", name, reason)
    if adaptation.epochs is None:
        return
    if isinstance(adaptation, GradualUnfreezing):
        groups = len(layer_groups(body))
        if frozen := adaptation.never_trained(groups):
            logger.warning(
                "%g epochs are over before all layers take part, one more in each: %d of %d layer "
                "groups are never trained; leave the epochs out, or give more than %d",
                *(adaptation.epochs, frozen, groups, groups),
            )
    steps = max(1, round(adaptation.epochs * -(-num_examples // adaptation.batch_size)))
    if steps < adaptation.min_steps:
        logger.warning(
            "%g epochs of %d examples are %d steps, which may be too few to learn from; where no "
            "epochs are given there are at least %d (min_steps)",
            adaptation.epochs,
            num_examples,
            steps,
            adaptation.min_steps,
        )


def _parts(
    task: AnyTask,
    train: Sequence[Example] | str | Path,
    dev: Sequence[Example] | str | Path | None,
) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and those of dev, which may have to be held out."""
    train = labelled_examples(task, train)
    dev = None if dev is None else labelled_examples(task, dev)
    if dev is None:
        train, dev = _hold_out(train)
    else:
        known = {repr(example.texts) for example in train}
        if both := sum(repr(example.texts) in known for example in dev):
            logger.warning(
                "%d of %d dev texts are among the training texts, too: what is measured on dev is "
                "better than on new texts",
                both,
                len(dev),
            )
    if not (train and dev):
        raise DataError("there are no training examples, or no dev examples; give some of each")
    empty = sum(not any(map(len, example.texts)) for example in train)
    if empty > len(train) / 2:
        logger.warning(
            "%d of %d training texts are empty; is it the column of the texts?", empty, len(train)
        )
    return train, dev


def _report_cuts(data: EncodedExamples, length: int, task: AnyTask) -> None:
    full = int((data.lengths >= length).sum())
    if full > _FEW * len(data) and task.unit == "sequence":
        logger.info(
            "%d of %d training texts fill max_length, which is %d tokens: what is longer is cut",
            full,
            len(data),
            length,
        )


def _seed_result(fitted: Fitted) -> SeedResult:
    return SeedResult(
        seed=fitted.seed,
        metrics=fitted.report.metrics,
        steps=fitted.steps,
        degenerate=fitted.degenerate,
    )


def _with_labels(task: AnyTask, train: Sequence[Example], dev: Sequence[Example]) -> AnyTask:
    """The task with the labels of both parts; a rare one may be in dev alone."""
    if isinstance(task, Classification) and task.kind == "regression":
        return task.fit_labels(train)
    examples = [*train, *dev]
    fitted = task.fit_labels(examples)
    labels = fitted.labels
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    logger.info("%d labels: %s%s", len(labels), ", ".join(map(str, labels[:_SHOWN])), more)
    if isinstance(task, Classification) and task.kind == "single" and not task.labels:
        learned = {example.label for example in train}
        if alone := [example for example in dev if example.label not in learned]:
            logger.warning(
                "%d dev examples have labels that no training example has (row %s has %r): nothing "
                "can be learned of them",
                *(len(alone), alone[0].row, alone[0].label),
            )
        counts = Counter(example.label for example in examples)
        once = sum(count == 1 for count in counts.values())
        if once > len(counts) / 2:
            logger.warning(
                "%d of %d labels are in one example alone, so there is little to learn of them; "
                "is this the column of the labels?",
                once,
                len(counts),
            )
    return fitted


def _network(lm: LanguageModel, task: AnyTask, adaptation: Adaptation, seed: int) -> AdaptedNetwork:
    torch.manual_seed(seed)
    head = family_head(lm.model, task, adaptation)
    network = adaptation.network(lm.model, head, seed)
    return network.to(next(lm.model.parameters()).device)


def _fit_seeds(
    lm: LanguageModel, task: AnyTask, data: _Data, adaptation: Adaptation, seeds: Sequence[int]
) -> list[Fitted]:
    results: list[Fitted] = []
    taken = set(seeds)
    for seed in seeds:
        try:
            fitted = _fit_seed(lm, task, data, adaptation, seed, taken)
            if fitted.interrupted and results:  # half a run is not to be averaged with whole ones
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not results:
                raise
            logger.warning("interrupted in seed %d; %d before it are kept", seed, len(results))
            break
        results.append(fitted)
        if fitted.interrupted:
            logger.warning("interrupted; of seed %d the best weights so far are kept", fitted.seed)
            break
        best = max(results, key=_rank)  # one seed's weights are enough to hold
        results = [one if one is best else replace(one, weights={}) for one in results]
    return results


def _best(results: Sequence[Fitted], adaptation: Adaptation) -> Fitted:
    """The run that is best on dev.

    Raises:
        DivergedError: if all are degenerate.
    """
    if all(fitted.degenerate for fitted in results):
        raise DivergedError(
            f"every run was degenerate (dev {results[0].report.main} "
            f"{results[0].report.score:.3f}): one answer for everything, or a loss that never "
            f"moved; lower the learning rate (now {adaptation.lr:g}), train longer, choose by "
            "another metric if one label is most of all, or look at the labels"
        )
    return max(results, key=_rank)


def _rank(fitted: Fitted) -> tuple[bool, float]:
    return not fitted.degenerate, fitted.report.score


def _fit_seed(
    lm: LanguageModel,
    task: AnyTask,
    data: _Data,
    adaptation: Adaptation,
    seed: int,
    taken: set[int],
) -> Fitted:
    def run(one: int) -> Fitted:
        network = _network(lm, task, adaptation, one)
        fitted = adaptation.fit(network, task, data.train, data.dev, one)
        logger.info(
            "seed %d: dev %s %.4f, best after %d steps",
            one,
            fitted.report.main,
            fitted.report.score,
            fitted.steps,
        )
        return fitted

    return with_restarts(run, seed, adaptation.restarts, taken)


def _hold_out(examples: list[Example], share: float = 0.1) -> tuple[list[Example], list[Example]]:
    if len(examples) < 20:
        raise DataError(
            f"{len(examples)} labelled examples are too few to hold a dev part out; give one with "
            "--dev"
        )
    copies: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        copies.setdefault(repr(example.texts), []).append(i)
    groups = list(copies.values())
    count, held, rng = max(5, round(share * len(examples))), set[int](), np.random.default_rng(0)
    for group in (groups[i] for i in rng.permutation(len(groups))):
        if len(held) < count and len(held) + len(group) <= 2 * count:
            held.update(group)
    if len(held) < count:  # nearly all are copies of a few
        held = set(rng.permutation(len(examples))[:count].tolist())
    logger.info("no dev examples were given: %d of the training examples are held out", len(held))
    return (
        [e for i, e in enumerate(examples) if i not in held],
        [e for i, e in enumerate(examples) if i in held],
    )


def read_task(name: str, **settings: Any) -> AnyTask:
    """The task called `name` with its settings.

    Raises:
        ConfigError: if there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return from_dict(TASKS[name], settings)
