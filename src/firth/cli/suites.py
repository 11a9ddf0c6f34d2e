"""`firth evaluate --suite`: a language model on minimal pairs, or on the similarity of words."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from firth.api import LanguageModel
from firth.cli.models import language_model
from firth.cli.options import print_rows
from firth.errors import ConfigError
from firth.protocols import Report

SimilaritySuite = Literal["word-similarity"]
"""Human judgements of how similar words are."""


def evaluate_suite(options: Any) -> None:
    """Runs the verb for the options of `evaluate` that have a suite."""
    model = language_model(options.model, device=options.device)
    if options.suite == "word-similarity":
        _evaluate_similarity(model, options)
        return
    report = model.minimal_pairs(
        options.file,
        suite=options.suite,
        limit=options.limit,
        within_word=options.within_word,
        pseudo=options.pseudo,
    )
    if options.json:
        print_report(report)
        return
    print_rows(_table(report), as_json=False)
    print(f"method\t{report.details['method']}")
    if ties := sum(one["ties"] for one in report.details["paradigms"].values()):
        print(f"ties\t{ties} pairs have two sentences of one score, and count half")
    if options.limit is not None:
        print(f"limit\tfirst {options.limit} pairs of each paradigm: a quick look, not a result")


def _evaluate_similarity(model: LanguageModel, options: Any) -> None:
    if options.limit is not None or options.within_word or options.pseudo:
        raise ConfigError("--limit, --within-word and --pseudo are about pairs of sentences")
    report = model.word_similarity(options.file)
    if options.json:
        print_report(report)
        return
    heading = ("set", "pairs", "covered", "spearman")
    print("\t".join(heading))
    for name, one in report.details["sets"].items():
        cells = {key: "undefined" if one[key] is None else one[key] for key in heading[1:]}
        print_rows([{"set": name, **cells}], as_json=False)
    print_rows(
        [{"name": name, "value": value} for name, value in report.metrics.items()], as_json=False
    )


def print_report(report: Report) -> None:
    """A report as one JSON object."""
    counted = {"num_examples": report.num_examples, "main": report.main}
    print(json.dumps({**report.metrics, **counted, "details": report.details}, ensure_ascii=False))


def _table(report: Report) -> Iterator[dict[str, Any]]:
    """A heading, a row for each field, and the means over paradigms."""
    paradigms, baselines = report.details["paradigms"].values(), report.details["baselines"]
    numbers = Counter(one["field"] for one in paradigms)
    sizes = Counter({field: 0 for field in numbers})
    for one in paradigms:
        sizes[one["field"]] += one["pairs"]
    heading = ("field", "paradigms", "pairs", "model", *baselines)
    yield dict(zip(heading, heading, strict=True))
    for field, value in report.details["fields"].items():
        others = [one["fields"][field] for one in baselines.values()]
        counts = (field, numbers[field], sizes[field], value)
        yield dict(zip(heading, (*counts, *others), strict=True))
    overall = [one["overall"] for one in baselines.values()]
    counts = ("overall", len(paradigms), report.num_examples, report.metrics["accuracy"])
    yield dict(zip(heading, (*counts, *overall), strict=True))
    kept = [one["pairs"] for one in paradigms if not one["permutations"]]
    others = [one["without_permutations"] for one in baselines.values()]
    value = report.metrics.get("accuracy_without_permutations")
    row = ("without permutations", len(kept), sum(kept), value, *others)
    yield dict(zip(heading, row, strict=True))
