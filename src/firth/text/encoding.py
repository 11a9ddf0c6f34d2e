"""Encoding a stream of documents in several processes, in order and with bounded memory.

The processes are plain `python -m firth.text.encoding`, spoken to through pipes. Unlike forked
ones they are safe beside threads, and unlike those of `multiprocessing` they do not import the
caller's script, so a script needs no ``if __name__ == "__main__"``.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from firth.errors import DataError, ResourceError
from firth.text.word_cache import Encoded, WordCache

CACHE_BYTES = 320 << 20
"""Memory for remembered words, of all processes together."""
BATCH_CHARACTERS = 1 << 17
"""Text sent to a process at a time: small enough for the processor's cache."""


def encode_stream(
    documents: Iterable[str], tokenizer_json: str, *, workers: int
) -> Generator[Encoded]:
    """Encodes documents literally and without special tokens, batch after batch, in order.

    Args:
        documents: any number of texts; a few batches of them are held at a time.
        tokenizer_json: the tokenizer, as in a tokenizer.json file.
        workers: number of processes; with 1, this process does the work.

    Raises:
        ResourceError: if a process dies, as when memory runs out.
    """
    if workers <= 1:
        cache = WordCache(tokenizer_json, CACHE_BYTES)
        yield from map(cache.encode, batches(documents))
        return
    free: SimpleQueue[_Process] = SimpleQueue()
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        for _ in range(workers):
            process = _Process()
            stack.callback(process.close)  # which ends the thread that waits for it
            process.send((tokenizer_json, CACHE_BYTES // workers))
            free.put(process)

        def encode(batch: list[str]) -> Encoded:
            process = free.get()
            try:
                return process.encode(batch)
            finally:
                free.put(process)

        waiting: deque[Future[Encoded]] = deque()
        stack.callback(lambda: [future.cancel() for future in waiting])
        for batch in batches(documents):
            waiting.append(threads.submit(encode, batch))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batches(documents: Iterable[str], characters: int = BATCH_CHARACTERS) -> Iterator[list[str]]:
    """Runs of consecutive documents, each run as short as holds so many characters."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document) + 1
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def utf8_size(document: str, index: int) -> int:
    """The bytes that a document takes in UTF-8.

    Raises:
        DataError: if it holds half of a surrogate pair, which is no character.
    """
    try:
        return len(document.encode())
    except UnicodeEncodeError as error:
        raise DataError(
            f"document {index + 1}: character {error.start} is {document[error.start]!a}, half of "
            "a surrogate pair, which UTF-8 cannot hold; repair the text where it comes from, or "
            "drop it with text.encode('utf-8', 'ignore').decode()"
        ) from error


class _Process:
    """A process that holds a `WordCache`, made of what is sent first."""

    def __init__(self) -> None:
        # The child must find what the parent finds, whatever the parent did to its path.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "firth.text.encoding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def encode(self, documents: list[str]) -> Encoded:
        self.send(documents)
        assert self._process.stdout
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._dead() from error

    def close(self) -> None:
        self._process.kill()  # it holds nothing that matters
        with contextlib.suppress(OSError):
            self._process.__exit__(None, None, None)

    def send(self, message: object) -> None:
        assert self._process.stdin
        try:
            pickle.dump(message, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except OSError as error:
            raise self._dead() from error

    def _dead(self) -> ResourceError:
        code = self._process.wait()
        return ResourceError(
            f"a process that encodes text ended with exit code {code} (-9: killed, most often "
            "because memory ran out); free memory or use fewer workers, then run again: finished "
            "shards are kept"
        )


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    gone = (EOFError, pickle.UnpicklingError, BrokenPipeError)
    with contextlib.suppress(*gone):  # when the parent has ended
        cache = WordCache(*pickle.load(source))
        while True:
            pickle.dump(cache.encode(pickle.load(source)), sink, pickle.HIGHEST_PROTOCOL)
            sink.flush()


if __name__ == "__main__":
    _serve()
