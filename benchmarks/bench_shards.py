"""From text files to tokens on disk: `write_shards` against `datasets.map`, two processes each.

    python benchmarks/bench_shards.py

A lap reads the same plain text files and leaves token files (firth) or a `datasets` cache of blocks
of 128 tokens (`run_mlm.py`'s tokenizing and grouping). Both start from nothing each time.
"""

import argparse
import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from data import CACHE, cached, text_files, tokenizer_folder
from peers import blocks_of_text, load_tokenizer
from report import compare, parser, publish, timing_table
from timing import Contender, Measured, Pace, run

VOCABULARY = 8192


def text_folder(megabytes: float) -> Path:
    """Files of the text, together about so large."""

    def write(path: Path) -> None:
        path.mkdir()
        left = int(megabytes * 1e6)
        for source in text_files():
            content = source.read_bytes()
            if len(content) > left:
                content = content[: content.rfind(b"\n", 0, left) + 1]
            if content:
                (path / source.name).write_bytes(content)
            left -= len(content)

    return cached(f"text-{megabytes:g}MB", write)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def firth(pace: Pace, folder: str, workers: int) -> None:
    """`write_shards`."""
    from firth.text.corpus import Corpus
    from firth.text.shards import write_shards
    from firth.text.tokenizers import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_folder(VOCABULARY))
    pace.start()
    while True:
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            begin = time.perf_counter()
            corpus = Corpus.from_files(folder)
            shards = write_shards(corpus, tokenizer, directory, workers=workers)
            seconds = time.perf_counter() - begin
            disk = _size(Path(directory))
        pace.lap(seconds, tokens=shards.num_tokens, documents=shards.num_documents, disk=disk)


def datasets_map(pace: Pace, folder: str, workers: int) -> None:
    """`datasets.load_dataset` and two `map`s."""
    tokenizer = load_tokenizer(tokenizer_folder(VOCABULARY))
    files = sorted(Path(folder).iterdir())
    pace.start()
    while True:
        directory = Path(tempfile.mkdtemp(dir=CACHE))
        begin = time.perf_counter()
        blocks = blocks_of_text(files, tokenizer, directory, num_proc=workers)
        seconds = time.perf_counter() - begin
        disk, rows = _size(directory), len(blocks)
        tokens = rows * len(blocks[0]["input_ids"])
        del blocks
        shutil.rmtree(directory)
        pace.lap(seconds, tokens=tokens, documents=rows, disk=disk)


@contextlib.contextmanager
def watched(pid: int, peaks: dict[int, int]) -> Iterator[None]:
    """Records the peak memory of a process and all below it, pages that they share counted once."""
    done = threading.Event()

    def watch() -> None:
        root = psutil.Process(pid)
        while not done.wait(0.2):
            total = 0
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                    total += process.memory_full_info().pss
            peaks[pid] = max(peaks.get(pid, 0), total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def contenders(folder: Path, workers: int) -> list[Contender]:
    """firth first: the other is held against it."""
    options = {"folder": str(folder), "workers": workers}
    return [
        Contender(name="firth", work="firth", options=options),
        Contender(name="datasets", work="datasets_map", options=options),
    ]


def seconds(one: Measured) -> str:
    """Median with its spread over the rounds."""
    return f"{one.seconds:.2f} [{min(one.rounds):.2f}-{max(one.rounds):.2f}]"


def disk(one: Measured, text: int) -> str:
    """Space on disk, and how much that is of the text's."""
    return f"{one.facts['disk'] / 1e6:,.1f} MB ({one.facts['disk'] / text:.2f})"


def arguments() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=3)
    options.add_argument("--megabytes", type=float, default=50, help="of text, at most")
    options.add_argument("--workers", type=int, default=2, help="processes of each side")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.megabytes, given.patience = 1, 1, 0
    return given


def main() -> None:
    given = arguments()
    folder = text_folder(given.megabytes)
    tokenizer_folder(VOCABULARY)
    rows = contenders(folder, given.workers)
    found: dict[int, int] = {}
    timing = compare(
        rows,
        given,
        laps=1,
        warm_up=1,
        watch=lambda pid: watched(pid, found),
    )
    peaks = dict(zip((one.contender.name for one in timing.measured), found.values(), strict=True))
    size = _size(folder)
    extra = [
        ("seconds", seconds),
        ("MB of text a second", lambda one: f"{size / 1e6 / one.seconds:.1f}"),
        ("tokens", lambda one: f"{one.facts['tokens']:,}"),
        ("disk (of the text)", lambda one: disk(one, size)),
    ]
    note = (
        f"{size / 1e6:.1f} MB of plain text in {len(list(folder.iterdir()))} files, WordPiece "
        f"{VOCABULARY:,}, {given.workers} processes. Memory is that of all processes together, "
        "measured in a pass that is not timed."
    )
    table = timing_table(
        timing,
        title="text to token files",
        note=note,
        extra=extra,
        memory=lambda one: peaks[one.contender.name],
    )
    publish("shards", given, [table])


if __name__ == "__main__":
    run(main, {"firth": firth, "datasets_map": datasets_map})
