"""Writing files whole or not at all: under a temporary name, flushed to the disk, then renamed."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from firth.errors import ResourceError

TEMPORARY = ".part"
"""Ends the name of a file that is being written."""


def temporary_path(path: Path) -> Path:
    """The name of a file until it is whole."""
    return path.with_name(path.name + TEMPORARY)


def write_file(path: Path, content: bytes) -> None:
    """Writes a small file.

    Raises:
        ResourceError: if the disk is full.
    """
    with disk_full_is_an_error(path, len(content)):
        with temporary_path(path).open("wb") as file:
            file.write(content)
            flush_to_disk(file)
        temporary_path(path).replace(path)


def flush_to_disk(file: BinaryIO) -> None:
    """Returns once what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def disk_full_is_an_error(path: Path, needed: int) -> Iterator[None]:
    """Turns the operating system's "no space left" into a ResourceError that says what is needed.

    Args:
        path: the file being written.
        needed: bytes that it may take.

    Raises:
        ResourceError: if the disk is full, or the user's share of it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"{path}: the disk is full ({error.strerror}); this step needs up to "
            f"{needed / 1e6:,.1f} MB there; free space or choose another folder, then run again: "
            "what was finished is kept"
        ) from error
