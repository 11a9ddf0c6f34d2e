"""Contenders timed in turns, each in a process of its own.

A contender is a process that sets up its work once and then does as many laps (training steps,
passes over some texts) as it is told, over a pipe, while all the others sleep. So every round
measures all of them within seconds of each other, and each has its own allocator, its own peak
memory and its own libraries.

In a benchmark script, `run(main, WORK)` calls `main()`, which gives `interleave` the contenders.
Their processes are the same script started again: it then calls the function of `WORK` that the
contender names, with a `Pace` and the contender's options.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from ctypes.util import find_library
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psutil

TCMALLOC = find_library("tcmalloc_minimal") or find_library("tcmalloc")
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""glibc keeps freed memory, instead of giving it back to the kernel and asking for it again."""
QUIET = 0.2
"""Processors that others may keep busy in a round that counts."""
SERVE = "--contend"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of a table."""

    name: str
    work: str
    """The function of the script's `WORK` that does it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""
    tuned_allocator: bool = False
    """tcmalloc where it is installed, else glibc told to keep freed memory; else glibc as it is."""
    allocator_note: str = ""
    """What the contender itself does to the allocator."""

    @property
    def allocator(self) -> str:
        """The allocator, as a table shows it."""
        if self.tuned_allocator:
            return "tcmalloc" if TCMALLOC else "glibc, mallopt"
        return self.allocator_note or "glibc"

    def environment(self, threads: int) -> dict[str, str]:
        """The environment of the process."""
        clean = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and "MALLOC" not in k}
        count = str(threads)
        settings = {
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "RAYON_NUM_THREADS": count,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "DATASETS_VERBOSITY": "error",
        }
        if self.tuned_allocator:
            settings |= {"LD_PRELOAD": TCMALLOC} if TCMALLOC else KEEP_MEMORY
        return {**clean, **settings}


class Pace:
    """A contender's side of the pipe: says when it is ready, then does laps when told to."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print must not get into the pipe
        self._laps: list[float] = []
        self._facts: dict[str, Any] = {}
        self._left = 0
        self._since = 0.0

    def start(self, **facts: Any) -> None:
        """Everything is set up: waits for the first order."""
        self._facts.update(facts)
        self._report()

    def lap(self, seconds: float | None = None, **facts: Any) -> None:
        """One lap is done. At the end of an order, reports and waits for the next one.

        Args:
            seconds: the lap's time; by default, the time since the lap before (or the order).
            facts: anything to show beside the times; the last lap's count.
        """
        now = time.perf_counter()
        self._laps.append(now - self._since if seconds is None else seconds)
        self._facts.update(facts)
        self._left -= 1
        if not self._left:
            self._report()
        self._since = time.perf_counter()

    def _report(self) -> None:
        reply = {"laps": self._laps, "peak": _peak_memory(), "facts": self._facts}
        self._pipe.write(json.dumps(reply) + "\n")
        self._pipe.flush()
        order = sys.stdin.readline()
        if not order:
            sys.exit()
        self._laps, self._left = [], int(order)
        self._since = time.perf_counter()


def _peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    try:
        # Not getrusage: its peak takes in that of the process this one was started from.
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


class _Process:
    """A contender's process, seen from the script."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        order = json.dumps({"work": contender.work, "options": dict(contender.options)})
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], SERVE, order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=contender.environment(threads),
        )
        self.name = contender.name
        self.reply = self._read()

    def run(self, laps: int) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(f"{laps}\n")
        self.process.stdin.flush()
        self.reply = self._read()
        return self.reply

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self.log.read()[-4000:]}")
        return json.loads(line)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the rounds gave for one contender."""

    contender: Contender
    rounds: list[float]
    """Seconds a lap, the mean of each round."""
    peak_memory: int
    """Of its process over its whole life, in bytes."""
    facts: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Median over the rounds of the seconds a lap."""
        return median(self.rounds)

    def times_slower_than(self, other: "Measured") -> list[float]:
        """This one's time over the other's, round by round, sorted."""
        return sorted(mine / its for mine, its in zip(self.rounds, other.rounds, strict=True))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """All contenders of one table, and how busy the machine was meanwhile."""

    measured: list[Measured]
    laps: int
    others: list[float]
    """Processors that other processes kept busy during each round that counts, on average."""
    set_aside: int
    """Rounds that do not count, because others kept the machine busier."""
    load: tuple[float, float]
    """One-minute load average before and after; it counts the contenders themselves."""


@dataclass(frozen=True)
class _Round:
    seconds: list[float]
    """A lap of each contender."""
    others: float


def interleave(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    laps: int,
    threads: int,
    warm_up: int = 2,
    patience: int = 0,
    watch: Callable[[int], contextlib.AbstractContextManager[None]] | None = None,
) -> Timing:
    """Times the contenders in turns: `laps` laps each, `rounds` times over.

    Args:
        contenders: what to time.
        rounds: how often each gets its turn.
        laps: in each turn.
        threads: for all libraries.
        warm_up: laps of each that are not counted, right after its start.
        patience: rounds that may be added because other processes kept more than `QUIET` processors
            busy; the `rounds` in which they did least are those that count.
        watch: called with the process id, for a context manager round the warm-up.
    """
    before = os.getloadavg()[0]
    processes: list[_Process] = []
    try:
        for contender in contenders:
            _say(f"  starting {contender.name}")
            processes.append(process := _Process(contender, threads))
            with watch(process.process.pid) if watch else contextlib.nullcontext():
                process.run(warm_up)
        done: list[_Round] = []
        while len(done) < rounds or (
            sum(one.others <= QUIET for one in done) < rounds and len(done) < rounds + patience
        ):
            done.append(_round(processes, laps))
    finally:
        for process in processes:
            process.close()
    kept = sorted(done, key=lambda one: one.others)[:rounds]
    measured = [
        Measured(
            contender=contender,
            rounds=[one.seconds[i] for one in kept],
            peak_memory=process.reply["peak"],
            facts=process.reply["facts"],
        )
        for i, (contender, process) in enumerate(zip(contenders, processes, strict=True))
    ]
    return Timing(
        measured=measured,
        laps=laps,
        others=[one.others for one in kept],
        set_aside=len(done) - rounds,
        load=(before, os.getloadavg()[0]),
    )


def _round(processes: Sequence[_Process], laps: int) -> _Round:
    busy, begin = _busy(processes), time.perf_counter()
    seconds = [sum(process.run(laps)["laps"]) / laps for process in processes]
    others = max(0.0, (_busy(processes) - busy) / (time.perf_counter() - begin))
    shown = ", ".join(f"{one:.3f}" for one in seconds)
    _say(f"  {shown} s a lap; others kept {others:.2f} processors busy")
    return _Round(seconds, others)


def _busy(processes: Sequence[_Process]) -> float:
    """Processor seconds spent so far by all that is neither a contender nor this script."""
    total = psutil.cpu_times()
    busy = sum(total[:8]) - total.idle - getattr(total, "iowait", 0.0)
    own = psutil.Process().cpu_times()
    busy -= own.user + own.system
    for contender in (psutil.Process(p.process.pid) for p in processes):
        ended = contender.cpu_times()
        busy -= ended.children_user + ended.children_system
        for alive in (contender, *contender.children(recursive=True)):
            used = alive.cpu_times()
            busy -= used.user + used.system
    return busy


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(main: Callable[[], None], work: Mapping[str, Callable[..., None]]) -> None:
    """Starts a benchmark script: `main`, or a contender's work where this is its process."""
    if sys.argv[1:2] != [SERVE]:
        main()
        return
    order = json.loads(sys.argv[2])
    work[order["work"]](Pace(), **order["options"])
