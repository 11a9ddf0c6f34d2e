"""Texts that become other texts: translation, and how well it went."""

from collections.abc import Sequence
from typing import Any

from firth.errors import DataError, UnsupportedError
from firth.protocols import Report


def bleu(outputs: Sequence[str], references: Sequence[str], *, method: str) -> Report:
    """Corpus BLEU (Papineni et al. 2002) as sacreBLEU computes it (Post 2018), and chrF.

    Args:
        outputs: what the model wrote, detokenised.
        references: what was wanted, line by line.
        method: how the outputs were decoded, for the report.

    Returns:
        BLEU and chrF from 0 to 100, with sacreBLEU's signatures in the details: numbers compare
        only where these agree.

    Raises:
        DataError: if there are not as many references as outputs, or none.
        UnsupportedError: if sacreBLEU is not installed.
    """
    if len(outputs) != len(references):
        raise DataError(
            f"{len(outputs):,} outputs and {len(references):,} references; expected one a line"
        )
    if not outputs:
        raise DataError("no outputs and no references; expected at least one line of each")
    scores = sacrebleu_metrics()
    metrics, signatures = {}, {}
    for name, metric in (("bleu", scores.BLEU()), ("chrf", scores.CHRF())):
        metrics[name] = float(metric.corpus_score(list(outputs), [list(references)]).score)
        signatures[name] = str(metric.get_signature())
    return Report(
        metrics=metrics,
        main="bleu",
        num_examples=len(outputs),
        details={"method": method, "signatures": signatures},
    )


def sacrebleu_metrics() -> Any:
    """The module `sacrebleu.metrics`.

    Raises:
        UnsupportedError: if sacreBLEU is not installed.
    """
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise UnsupportedError(
            "BLEU needs sacreBLEU; install it: pip install 'firth[translate]'"
        ) from error
    return sacrebleu.metrics
