"""Tables of a benchmark: printed, and written to `results/` with the machine they come from."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from data import CACHE, ROOT
from timing import TCMALLOC, Contender, Measured, Timing, interleave

PACKAGES = (
    "torch",
    "numpy",
    "tokenizers",
    "transformers",
    "accelerate",
    "datasets",
    "sentence-transformers",
    "onnxruntime",
    "gensim",
    "numba",
)


def parser(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    found = argparse.ArgumentParser(
        description=description.strip().split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    found.add_argument("--rounds", type=int, default=rounds, help="turns of each contender")
    found.add_argument(
        "--patience",
        type=int,
        default=10,
        help="rounds that may be added when other processes keep the machine busy",
    )
    found.add_argument("--threads", type=int, default=os.cpu_count(), help="of all libraries")
    found.add_argument(
        "--quick", action="store_true", help="tiny sizes, one round: does it run at all?"
    )
    found.add_argument(
        "--results",
        type=Path,
        default=None,
        help="where to write the tables (default: benchmarks/results, with --quick a folder of the "
        "system for temporary files)",
    )
    return found


def compare(
    contenders: Sequence[Contender], given: argparse.Namespace, *, laps: int, **how: Any
) -> Timing:
    """Times contenders in turns, as the command line has it; `how` goes to `interleave`."""
    return interleave(
        contenders,
        rounds=given.rounds,
        laps=laps,
        threads=given.threads,
        patience=given.patience,
        **how,
    )


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, a line on what was measured, and rows."""

    title: str
    note: str
    columns: Sequence[str]
    rows: list[list[str]]
    record: dict[str, Any] = field(default_factory=dict)
    """The numbers behind the rows, for machines."""

    def markdown(self) -> str:
        """The table with its heading; columns lined up."""
        lines = [list(self.columns), *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        shown = [_line(line, widths) for line in lines]
        shown.insert(1, _line(["-" * width for width in widths], widths))
        return "\n".join([f"### {self.title}", "", self.note, "", *shown, ""])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"| {' | '.join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True))} |"


def timing_table(
    timing: Timing,
    *,
    title: str,
    note: str,
    extra: Sequence[tuple[str, Callable[[Measured], str]]],
    memory: Callable[[Measured], int] = lambda one: one.peak_memory,
) -> Table:
    """Rows of one `interleave`, the first contender being the one that the others are held against.

    Args:
        timing: the measurements.
        title: the table's heading.
        note: what the work is.
        extra: columns of its own, such as tokens a second: heading and cell.
        memory: where the peak memory stands.
    """
    first = timing.measured[0]
    rows = []
    for one in timing.measured:
        ratios = one.times_slower_than(first)
        middle = ratios[len(ratios) // 2] if len(ratios) % 2 else sum(_middle(ratios)) / 2
        ratio = "1" if one is first else f"{middle:.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]"
        megabytes = memory(one) / 2**20
        share = f"{memory(first) / memory(one):.0%}"
        cells = [text(one) for _, text in extra]
        memory_cell = f"{megabytes:,.0f} MB" + ("" if one is first else f" ({share})")
        rows.append([one.contender.name, one.contender.allocator, *cells, ratio, memory_cell])
    aside = f", {timing.set_aside} busier ones left out" if timing.set_aside else ""
    busy = (
        f"Median of {len(first.rounds)} rounds of {timing.laps} [lowest-highest]. Other processes "
        f"kept {min(timing.others):.2f} to {max(timing.others):.2f} processors busy in these "
        f"rounds{aside}; load average {timing.load[0]:.2f} before, {timing.load[1]:.2f} after."
    )
    return Table(
        title=title,
        note=f"{note}\n{busy}",
        columns=(
            "contender",
            "allocator",
            *(heading for heading, _ in extra),
            f"time against {first.contender.name}",
            f"peak memory ({first.contender.name}'s share)",
        ),
        rows=rows,
        record=_record(timing, memory),
    )


def _middle(values: list[float]) -> list[float]:
    return values[len(values) // 2 - 1 : len(values) // 2 + 1]


def _record(timing: Timing, memory: Callable[[Measured], int]) -> dict[str, Any]:
    return {
        "laps_a_round": timing.laps,
        "processors_busy_with_others": timing.others,
        "rounds_left_out": timing.set_aside,
        "load_average": timing.load,
        "contenders": [
            {
                "name": one.contender.name,
                "options": dict(one.contender.options),
                "allocator": one.contender.allocator,
                "seconds_a_lap": one.seconds,
                "rounds": one.rounds,
                "peak_memory_bytes": memory(one),
                "facts": one.facts,
            }
            for one in timing.measured
        ],
    }


def milliseconds(one: Measured) -> str:
    """Median time of a lap, with its spread over the rounds."""
    low, high = min(one.rounds) * 1e3, max(one.rounds) * 1e3
    return f"{one.seconds * 1e3:,.0f} [{low:,.0f}-{high:,.0f}]"


def rate(amount: float) -> Callable[[Measured], str]:
    """Amount a second, when a lap handles `amount`."""
    return lambda one: f"{amount / one.seconds:,.0f}"


def environment(threads: int | None = None) -> dict[str, Any]:
    """The machine, the versions, the commit, the command and the date."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": _commit(),
        "processor": f"{_processor()}, {os.cpu_count()} processors{_features()}",
        "memory": f"{memory:.0f} GB",
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "threads": threads,
        "tcmalloc": TCMALLOC or "not installed: glibc was told to keep freed memory instead",
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    # Of the scripts too: they say what is measured. Results change with every script that runs.
    places = ("src", "benchmarks", ":(exclude)benchmarks/results")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *places)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), "unknown")


def _features() -> str:
    """What of bfloat16 the processor has in hardware, since the ratios hang on it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = [name for name in ("amx_bf16", "avx512_bf16") if f" {name}" in text]
    return f", {' and '.join(found) or 'no bfloat16 instructions'}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def publish(name: str, arguments: argparse.Namespace, tables: Sequence[Table]) -> None:
    """Prints the tables, and writes them as `NAME.md` and `NAME.json`."""
    where = environment(arguments.threads)
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
    facts = [f"- {k}: {v}" for k, v in where.items() if k != "versions" and v is not None]
    head = [f"## {name.replace('_', ' ')}", "", *facts, f"- versions: {versions}", ""]
    text = "\n".join([*head, *(table.markdown() for table in tables)])
    print(text)
    default = CACHE / "quick-results" if arguments.quick else ROOT / "benchmarks" / "results"
    directory = arguments.results or default
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.md").write_text(text, encoding="utf-8")
    record = {"environment": where, "tables": {t.title: t.record for t in tables}}
    numbers = json.dumps(record, indent=1).replace(f"{CACHE}{os.sep}", "")  # no path of a machine
    (directory / f"{name}.json").write_text(numbers + "\n", encoding="utf-8")
