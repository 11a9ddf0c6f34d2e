"""`firth evaluate --target`: what an encoder-decoder writes against what was wanted."""

from pathlib import Path
from typing import Any

from firth.atomic import write_text
from firth.cli.models import language_model
from firth.cli.options import read_lines
from firth.cli.suites import print_report
from firth.errors import ConfigError, DataError
from firth.models import SourceToTarget
from firth.tasks.text_to_text import bleu, sacrebleu_metrics


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
    found = model.generate(
        sources, beams=options.beams, length_penalty=options.length_penalty, max_tokens=256
    )
    outputs = [one.continuation for one in found]
    if options.outputs is not None:
        write_text(Path(options.outputs), "\n".join(outputs) + "\n")
    search = "greedy" if options.beams == 1 else f"beam search, {options.beams} beams"
    if options.beams > 1:
        search += f", length penalty {options.length_penalty:g}"
    report = bleu(outputs, references, method=search)
    if options.json:
        print_report(report)
        return
    print(f"texts\t{report.num_examples}")
    for name, value in report.metrics.items():
        print(f"{name}\t{value:.2f}\t{report.details['signatures'][name]}")
    print(f"method\t{report.details['method']}")
