"""Files that are either there whole or not at all, whenever the process is killed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from firth.errors import ResourceError


def write_file(path: str | Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path`, then moves it into place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ResourceError(f"{path}: could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole text file."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_file(path, write)


def write_directory(path: str | Path, fill: Callable[[Path], None]) -> None:
    """Lets `fill` write files into a temporary directory, then moves it to `path`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise ResourceError(f"{path}: could not be written: {error}") from error
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


def sync(path: Path) -> None:
    """Waits until a file or directory has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
