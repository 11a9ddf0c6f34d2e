"""How small firth is: what it installs, how long it takes to start, how long its files are.

python benchmarks/bench_size.py
"""

import argparse
import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from data import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from report import Table, parser, publish

STACKS = {
    "firth": ("firth",),
    "Trainer": ("transformers", "accelerate", "datasets"),
    "sentence-transformers": ("sentence-transformers",),
}
"""What each is, as its users install it; torch is counted in all of them."""
STARTS = {
    "python": [sys.executable, "-c", "pass"],
    "firth --help": [str(Path(sys.executable).with_name("firth")), "--help"],
    "import firth": [sys.executable, "-c", "import firth"],
    "import torch": [sys.executable, "-c", "import torch"],
    "from firth.api import load": [sys.executable, "-c", "from firth.api import load"],
    "from transformers import Trainer": [
        sys.executable,
        "-c",
        "from transformers import BertForMaskedLM, Trainer",
    ],
    "import sentence_transformers": [sys.executable, "-c", "import sentence_transformers"],
}


def closure(names: tuple[str, ...]) -> list[str]:
    """The installed distributions that `names` need, themselves included, without extras."""
    found: dict[str, None] = {}
    queue = [canonicalize_name(name) for name in names]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = None
        for line in distribution.requires or []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                queue.append(canonicalize_name(wanted.name))
    return sorted(found)


def size(name: str) -> int:
    """Bytes of a distribution's files, byte code left out."""
    if name == "firth":  # may be installed from its folder
        return sum(p.stat().st_size for p in _sources("*") if p.is_file())
    files = importlib.metadata.distribution(name).files or []
    places = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return sum(place.stat().st_size for place in places if place.is_file())


def _sources(pattern: str) -> list[Path]:
    found = (ROOT / "src" / "firth").rglob(pattern)
    return sorted(path for path in found if "__pycache__" not in path.parts)


def dependencies() -> Table:
    """Packages and megabytes of each stack."""
    rows, record = [], {}
    for stack, names in STACKS.items():
        sizes = {name: size(name) for name in closure(names)}
        rest = {name: n for name, n in sizes.items() if name != "torch"}
        largest = sorted(rest, key=lambda name: -rest[name])[:4]
        rows.append(
            [
                stack,
                str(len(sizes) - 1),
                f"{sum(sizes.values()) / 1e6:,.0f}",
                f"{sum(rest.values()) / 1e6:,.0f}",
                ", ".join(f"{name} {rest[name] / 1e6:.0f}" for name in largest),
            ]
        )
        record[stack] = sizes
    return Table(
        title="installed dependencies",
        note="Distributions that an installation brings, all levels deep, without extras; MB on "
        "disk without byte code.",
        columns=("stack", "packages", "MB", "MB without torch", "largest beside torch, MB"),
        rows=rows,
        record=record,
    )


def starts(runs: int, threads: int) -> Table:
    """Seconds that fresh processes take."""
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    for _ in range(runs + 1):  # the first fills the caches of the disk and of Python
        for name, command in STARTS.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            times[name].append(time.perf_counter() - begin)
    times = {name: values[1:] for name, values in times.items()}
    return Table(
        title="start-up",
        note=f"Seconds of a fresh process: median of {runs} [lowest-highest], in turns.",
        columns=("command", "seconds"),
        rows=[
            [f"`{name}`", f"{median(v):.2f} [{min(v):.2f}-{max(v):.2f}]"]
            for name, v in times.items()
        ],
        record=times,
    )


def lines() -> Table:
    """Lines of the source files."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in _sources("*.py")
    }
    kept = sorted(n for n in lengths.values() if n)
    longest = max(lengths, key=lambda name: lengths[name])
    facts = {
        "files that are not empty": f"{len(kept)}",
        "lines": f"{sum(kept):,}",
        "median file": f"{median(kept):.0f}",
        "longest file": f"{lengths[longest]} ({longest})",
        "files over 250 lines": f"{sum(n > 250 for n in kept)}",
        "files over 400 lines": f"{sum(n > 400 for n in kept)}",
    }
    return Table(
        title="source",
        note="Lines of `src/firth`, comments, docstrings and blank lines included.",
        columns=("what", "lines"),
        rows=[[what, value] for what, value in facts.items()],
        record=lengths,
    )


def arguments() -> argparse.Namespace:
    return parser(__doc__ or "", rounds=5).parse_args()


def main() -> None:
    given = arguments()
    runs = 1 if given.quick else given.rounds
    publish("size", given, [dependencies(), starts(runs, given.threads), lines()])


if __name__ == "__main__":
    main()
