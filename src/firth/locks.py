"""Folders that one process at a time writes to."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from firth.atomic import resource_errors


@contextmanager
def only_process(folder: Path) -> Iterator[bool]:
    """Makes a folder, and holds it against other processes for as long as it is written to.

    The lock is on the folder itself and goes with the process, however that ends. Whoever holds it
    may empty the folder or rename it, but not put another one in its place. A new folder that is
    still empty at the end is removed. On a disk without locks nothing is held.

    Yields:
        Whether the folder is held; False if another process has it.

    Raises:
        ResourceError: if it cannot be made.
    """
    new = not folder.exists()
    descriptor, held = _open(folder)
    try:
        yield held
    finally:
        if new and held:
            with suppress(OSError):  # it is not empty, or has another name by now
                folder.rmdir()
        os.close(descriptor)


def _open(folder: Path) -> tuple[int, bool]:
    while True:
        with resource_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:  # whoever held it has just removed it
                continue
        held = _locked(descriptor)
        # Between the two calls whoever held it may have renamed or removed it.
        if not held or _is_at(descriptor, folder):
            return descriptor, held
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks
        pass
    return True


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False
