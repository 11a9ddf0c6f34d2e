"""`firth evaluate --target`: what an encoder-decoder writes against what was wanted."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firth.api import LanguageModel
from firth.atomic import write_text
from firth.cli.models import language_model
from firth.cli.options import one_line, read_lines
from firth.cli.suites import print_report
from firth.errors import ConfigError, DataError
from firth.models import SourceToTarget
from firth.tasks.text_to_text import bleu, sacrebleu_metrics

logger = logging.getLogger(__name__)


def evaluate_texts(options: Any) -> None:
    """Runs the verb for the options of `evaluate` that have a target."""
    sacrebleu_metrics()  # before the texts are written, which takes its time
    model = language_model(options.model, device=options.device)
    if not isinstance(model.model, SourceToTarget):
        raise ConfigError(f"{options.model} is no encoder-decoder; --target needs one")
    sources, references = read_lines(options.file), read_lines(options.target)
    if len(sources) != len(references):
        raise DataError(
            f"{options.file} has {len(sources):,} lines and {options.target} has "
            f"{len(references):,}; expected one line of each for every pair"
        )
    outputs = _written(model, sources, options)
    if options.outputs is not None:
        write_text(Path(options.outputs), "\n".join(map(one_line, outputs)) + "\n")
    search = "greedy" if options.beams == 1 else f"beam search, {options.beams} beams"
    if options.beams > 1:
        search += f", length penalty {options.length_penalty:g}"
    method = f"{search}, at most {options.max_tokens} tokens"
    report = bleu(*_not_empty(sources, outputs, references), method=method)
    if options.json:
        print_report(report)
        return
    print(f"texts\t{report.num_examples}")
    for name, value in report.metrics.items():
        print(f"{name}\t{value:.2f}\t{report.details['signatures'][name]}")
    print(f"method\t{report.details['method']}")


def _written(model: LanguageModel, sources: Sequence[str], options: Any) -> list[str]:
    """What the model writes for each line; nothing for an empty one.

    Raises:
        DataError: for a line that is longer than the model's window.
    """
    for row, ids in enumerate(model.tokenizer.encode_ids(sources), 1):
        if len(ids) > model.max_length:
            raise DataError(
                f"{options.file}: row {row}: {len(ids):,} tokens, and the model's window is "
                f"{model.max_length}; cut the line, or leave it out of both files"
            )
    asked = [i for i, source in enumerate(sources) if source.strip()]
    outputs, cut = [""] * len(sources), 0
    search = {"beams": options.beams, "length_penalty": options.length_penalty}
    written = model.generate([sources[i] for i in asked], max_tokens=options.max_tokens, **search)
    for i, one in zip(asked, written, strict=True):
        outputs[i] = one.continuation
        cut += one.ended == "length"
    if cut:
        logger.warning("%d texts end at --max-tokens (%d)", cut, options.max_tokens)
    return outputs


def _not_empty(
    sources: Sequence[str], outputs: Sequence[str], references: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Outputs and references without the pairs of which both sides are empty."""
    sides = list(zip(sources, references, strict=True))
    kept = [i for i, both in enumerate(sides) if any(map(str.strip, both))]
    if len(kept) < len(sides):
        logger.warning("%d pairs are empty on both sides and do not count", len(sides) - len(kept))
    if alone := sum(not source.strip() for source, _ in sides) - (len(sides) - len(kept)):
        logger.warning("%d sources are empty and their targets are not: they count", alone)
    return [outputs[i] for i in kept], [references[i] for i in kept]
