"""Files that are either there whole or not at all, whenever the process is killed."""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from firth.errors import ConfigError, ResourceError

_UMASK = os.umask(0)
os.umask(_UMASK)
_MODE = 0o666 & ~_UMASK
"""Of files as the user's umask has them: safetensors writes some that only their owner may read."""

TEMPORARY = ".part"
"""Ends the name of a file or directory that is being written."""


def temporary_path(path: Path) -> Path:
    """The name of a file or directory until it is whole."""
    return path.with_name(path.name + TEMPORARY)


def write_file(
    path: str | Path, write: Callable[[Path], object], *, needed: int | None = None
) -> None:
    """Lets `write` fill a temporary file beside `path`, then moves it into place.

    Args:
        path: the file. Of several processes that write it at the same time, the last one wins.
        write: fills the file whose name it is given.
        needed: bytes that it may take, where known.

    Raises:
        ResourceError: if the disk is full or not writable.
    """
    path = Path(os.path.realpath(path))  # a link stays, and what it names is written
    # Processes and threads that write one file at a time must not write into each other's.
    temporary = temporary_path(
        path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}")
    )
    try:
        with resource_errors(path, needed):
            write(temporary)
            temporary.chmod(_MODE)
            sync(temporary)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # the disk says so again, and the advice above it would be lost
            temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole text file; see `write_file`."""
    content = text.encode()
    write_file(path, lambda temporary: temporary.write_bytes(content), needed=len(content))


def write_directory(path: str | Path, fill: Callable[[Path], None]) -> None:
    """Lets `fill` write files into a temporary directory, then moves it to `path`."""
    path = Path(os.path.realpath(path))
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with resource_errors(path):
            temporary.mkdir(parents=True)
            fill(temporary)
            for file in temporary.iterdir():
                if file.is_file():
                    file.chmod(_MODE)
                sync(file)
            sync(temporary)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(path.parent)


def need_space(directory: Path, num_bytes: int, purpose: str) -> None:
    """Raises ResourceError unless `directory`'s disk has room for `num_bytes`."""
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise ResourceError(
            f"{directory}: {purpose} needs {num_bytes / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are "
            "free; free some space or choose another directory with -o, then run the command again"
        )


def output_path(path: str | Path) -> Path:
    """The path of what is to be written.

    Raises:
        ConfigError: if it is empty, which would be the folder one is in, or no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"the place to write to is {path!r}, expected the name of one")
    if not os.fspath(path):
        raise ConfigError("an empty path was given for what is to be written (an unset variable?)")
    return Path(path)


def need_writable(
    path: str | Path, *, directory: bool = False, inputs: Iterable[str | Path] = ()
) -> None:
    """Raises before the work whose result cannot be written to `path`; writes nothing itself.

    Args:
        path: a file that is to be written, whose folder is made if need be.
        directory: it is a directory.
        inputs: what is read, which must not be replaced.

    Raises:
        ConfigError: if it is empty; if something else has that name, or a file that of one of its
            folders; if it is one of `inputs`.
        ResourceError: if the user may not write there.
    """
    path = Path(os.path.realpath(output_path(path)))
    if path.exists() and any(os.path.exists(one) and path.samefile(one) for one in inputs):
        raise ConfigError(f"{path} is what is read, and would be lost; choose another output")
    if path.exists() and path.is_dir() != directory:
        found, wanted = ("a file", "a directory") if directory else ("a directory", "a file")
        raise ConfigError(f"{path} is {found}, expected the name of {wanted}; choose another")
    if not directory and path.exists() and not path.is_file():
        raise ConfigError(f"{path} is a device or a pipe, expected a file; choose another name")
    folder = path if directory else path.parent  # a file is replaced as a whole
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir():
        raise ConfigError(f"{path} cannot be written: {there} is no directory; choose another")
    for one in (path, there) if path.is_file() else (there,):
        if not os.access(one, os.W_OK):
            raise ResourceError(
                f"{path} cannot be written: no permission to write to {one}; choose another place"
            )


def sync(path: Path) -> None:
    """Waits until a file or directory has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of folders on some file systems
            raise
    finally:
        os.close(descriptor)


@contextmanager
def resource_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns what the operating system says of a write that failed into advice.

    Args:
        path: what is being written.
        needed: bytes that it may take, where known.

    Raises:
        ResourceError: if the disk is full, or the user's share of it, or cannot be written to.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{path}: could not be written: {error}") from error
        size = "" if needed is None else f"; this step needs up to {needed / 1e6:,.1f} MB there"
        raise ResourceError(
            f"{path}: the disk is full ({error.strerror}){size}; free space or choose another "
            "folder, then run again: what was finished is kept"
        ) from error
