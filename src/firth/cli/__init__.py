"""The command line: `firth VERB ...`. Verbs are imported when used: `firth --help` is instant."""

import errno
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from firth.config import suggest
from firth.errors import ConfigError, FirthError, Interrupted

VERBS = {
    "pretrain": ("firth.cli.pretrain", "train a language model on your text, or resume"),
    "adapt": ("firth.cli.adapt", "teach a model your task from a labelled file"),
    "predict": ("firth.cli.adapted", "label texts with an adapted model"),
    "evaluate": ("firth.cli.adapted", "measure an adapted model; a language model on pairs"),
    "embed": ("firth.cli.use", "vectors for sentences, words or tokens"),
    "fill": ("firth.cli.use", "fill the blanks of a sentence"),
    "generate": (
        "firth.cli.use",
        "continue texts, or write others for them",
    ),
    "score": ("firth.cli.use", "how likely a model finds each line of a file"),
    "neighbours": (
        "firth.cli.neighbours",
        "where a corpus uses a word as in your sentence",
    ),
    "export": ("firth.cli.vectors", "a static model's word vectors as a file"),
    "recipes": ("firth.cli.show", "list the recipes, or show one resolved"),
    "inspect": ("firth.cli.show", "what a run directory holds and how its training went"),
    "demo": ("firth.cli.show", "the whole job on the text that comes with firth"),
}
"""Verb to the module that has the function of that name, and what it does."""

_OUT_OF_MEMORY = re.compile(r"out of memory|(can't|not enough|cannot) .*memory", re.IGNORECASE)

HELP = """firth: pre-train language models on your own text, transfer them to your own tasks

usage: firth VERB ... [--help]

{verbs}

    firth demo
    firth pretrain bert letters/*.txt -o runs/letters --size mini --minutes 20
    firth adapt runs/letters train.tsv --text sentence --label label -o runs/topics finetune
    firth predict runs/topics new.txt

Results go to stdout (--json for machines), logs to stderr. Exit codes: 0 done, 1 failure, 2 usage
or configuration, 3 data, 4 diverged or degenerate, 5 out of memory or disk, 130/143 interrupted
(pre-training: after saving)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _make_stdout_take_any_text()
    try:
        return _main(arguments)
    except BrokenPipeError:  # the reader (head, say) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"{' '.join(['firth', *arguments[:1]])}: {error}", file=sys.stderr)
        return 5 if error.errno == errno.ENOSPC else 1


def _make_stdout_take_any_text() -> None:
    """Results are UTF-8 in any locale, as the files that are read; a closed stdout takes them."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (to the end)
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8")


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        lines = [f"  {verb:<{width}}  {what}" for verb, (_, what) in VERBS.items()]
        print(HELP.format(verbs="\n".join(lines)), flush=True)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from firth import __version__

        print(f"firth {__version__}", flush=True)
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        print(f"firth: unknown verb {verb!r}; {suggest(verb, VERBS)}", file=sys.stderr)
        return 2
    return _run(verb, arguments[1:])


def _run(verb: str, arguments: list[str]) -> int:
    try:
        with _logging_to_stderr():
            getattr(importlib.import_module(VERBS[verb][0]), verb)(arguments)
        sys.stdout.flush()
        return 0
    except FirthError as error:
        if first_process() or not isinstance(error, ConfigError | Interrupted):
            print(f"firth {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"firth {verb}: interrupted", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:  # torch has RuntimeErrors for this
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        print(f"firth {verb}: out of memory; try a smaller batch or model", file=sys.stderr)
        return 5


def first_process() -> bool:
    """Whether this is the one of several processes (torchrun) that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """The log goes to stderr, unless the calling program has it go elsewhere."""
    logger = logging.getLogger("firth")
    if logger.handlers:
        yield
        return
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO if first_process() else logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
