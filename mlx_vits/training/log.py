"""What a run leaves behind of its numbers: `losses.jsonl`, `scores.jsonl` and TensorBoard.

A line is written after every step. A resumed run first takes away the lines beyond its place, so
that the file is the one the run that never stopped would have written.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from mlx_vits.errors import DataError, UserError
from mlx_vits.files import atomic_write
from mlx_vits.json_files import read_json_lines

LOSSES = "losses.jsonl"
SCORES = "scores.jsonl"

# Upstream's TensorBoard tags, and two of our own.
_TAGS = {
    "loss_total": "loss/g/total",
    "loss_d": "loss/d/total",
    "loss_fm": "loss/g/fm",
    "loss_mel": "loss/g/mel",
    "loss_commit": "loss/g/kl_ssl",
    "loss_kl": "loss/g/kl",
    "lr_g": "learning_rate",
    "grad_norm_g": "grad_norm_g",
    "grad_norm_d": "grad_norm_d",
    "loss_gen": "loss/g/gen",
    "loss_reg": "loss/g/reg",
}


class JsonLines:
    """A file of one JSON object a line, each with a `step`.

    Args:
        path: the file.
        keep_to: lines of later steps are taken away; None for a new file.

    Raises:
        DataError: an earlier file is damaged; it stays as it is.
    """

    def __init__(self, path: Path, keep_to: int | None = None):
        self.path = path
        kept = [] if keep_to is None else [r for r in read_lines(path) if r["step"] <= keep_to]
        with atomic_write(path) as file:
            file.write("".join(json.dumps(record) + "\n" for record in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); free some space and resume"
            ) from error

    def close(self) -> None:
        self._file.close()


class _Record(TypedDict):
    step: int


def read_lines(path: Path) -> Sequence[Mapping[str, Any]]:
    """Read all records of a file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    cure = "move the file away to go on without its lines"
    return read_json_lines(path, _Record, error=DataError, cure=cure, may_be_cut=True)


def check_tensorboard() -> None:
    """Whether TensorBoard's files can be written.

    Raises:
        UserError: the optional package is not installed.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            "--tensorboard needs the package tensorboardX; install mlx-vits[tensorboard]"
        )


class TensorBoard:
    """Scalars under upstream's tags, through the optional package tensorboardX."""

    def __init__(self, folder: Path, resumed_at: int):
        check_tensorboard()
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_at + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Adds the scalars of one step."""
        for name, tag in _TAGS.items():
            self._writer.add_scalar(tag, record[name], record["step"])

    def close(self) -> None:
        self._writer.close()
