"""What a run leaves on record: metrics.jsonl always, TensorBoard where asked for."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from firth.atomic import resource_errors, write_text
from firth.errors import UnsupportedError


class Tracker:
    """Appends one JSON object a line to RUN/metrics.jsonl, and mirrors numbers to TensorBoard."""

    def __init__(self, run: Path, *, from_step: int = 0, tensorboard: bool = False) -> None:
        """Opens the record; rows after `from_step`, of a lost continuation, are dropped."""
        self.path = run / "metrics.jsonl"
        kept = [row for row in read_metrics(run) if row["step"] <= from_step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _summary_writer(run, from_step) if tensorboard else None

    def write(self, row: Mapping[str, Any]) -> None:
        """Records a row; it has at least `step`.

        Raises:
            ResourceError: if the disk is full.
        """
        with resource_errors(self.path):
            self._file.write(json.dumps(dict(row)) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        with suppress(OSError):  # of the disk that was full when the row before was written
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line cut short by a kill is left out."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _summary_writer(run: Path, from_step: int) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise UnsupportedError(
            "TensorBoard is not installed; pip install 'firth[track]' or leave out --tensorboard"
        ) from error
    # What a lost continuation has written there is not shown.
    return SummaryWriter(str(run / "tensorboard"), purge_step=from_step + 1)
