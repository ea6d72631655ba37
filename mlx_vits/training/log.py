"""What a stage leaves behind of its numbers: losses, scores and TensorBoard.

A line is written after every step. A resumed run first takes away the lines beyond its place, so
that the file is the one the run that never stopped would have written.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from mlx_vits.errors import DataError, UserError
from mlx_vits.system.files import atomic_write, make_folder
from mlx_vits.system.installing import install_command
from mlx_vits.system.json_files import read_json_lines

LOSSES, GPT_LOSSES = "losses.jsonl", "gpt_losses.jsonl"
SCORES, GPT_SCORES = "scores.jsonl", "gpt_scores.jsonl"
BOARD = "tensorboard"  # within a run's folder
GPT_BOARD = f"{BOARD}/gpt"

# Upstream's TensorBoard tags, and some of our own: what a stage logs under another name.
SOVITS_TAGS = {
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
GPT_TAGS = {
    "loss_total": "total_loss",
    "top3_accuracy": "top_3_acc",
    "lr": "lr",
    "ce": "loss/ce",
    "loss_reg": "loss/reg",
    "grad_norm": "grad_norm",
}

_FLUSH_SECONDS = 10


def _not_written(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written ({error.strerror}); free some space and go on with --resume"
    )


class JsonLines:
    """A file of one JSON object a line, each with a `step`.

    Args:
        path: the file.
        keep_to: lines of later steps are taken away.

    Attributes:
        is_new: whether no line was kept.

    Raises:
        DataError: an earlier file is damaged; it stays as it is.
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, keep_to: int):
        self.path = path
        kept = [record for record in read_lines(path) if record["step"] <= keep_to]
        with atomic_write(path) as file:
            file.write("".join(json.dumps(record) + "\n" for record in kept).encode())
        self.is_new = not kept
        try:
            # Unbuffered: what a full disk did not take must not be tried again by `close`.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _not_written(path, error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line.

        Raises:
            UserError: it cannot be written.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise _not_written(self.path, error) from error

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
            "--tensorboard needs the package tensorboardX; install it with "
            f"{install_command('tensorboard')}"
        )


class TensorBoard:
    """Scalars under upstream's tags, through the optional package tensorboardX.

    Its `SummaryWriter` writes in a thread, where a full disk ends the thread and then blocks the
    run; so its files are written here.

    Args:
        folder: for the files.
        resumed_at: step after which an interrupted run had written what is not to be shown.
        tags: TensorBoard's names of what is logged, by our own.

    Raises:
        UserError: the package is missing, or the file cannot be written.
    """

    def __init__(self, folder: Path, resumed_at: int, tags: Mapping[str, str]):
        check_tensorboard()
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._tags = tags
        self._folder, self._scalar, self._event = folder, summary.scalar, event_pb2.Event
        self._flushed = time.monotonic()
        make_folder(folder)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        try:
            self._writer = event_file_writer.EventsWriter(str(folder / "events"))
            # TensorBoard leaves out what an interrupted run had written beyond this step.
            self._add(resumed_at + 1, session_log=start)
        except OSError as error:
            raise _not_written(folder, error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Adds the scalars of one step.

        Raises:
            UserError: they cannot be written.
        """
        try:
            for name, tag in self._tags.items():
                self._add(record["step"], summary=self._scalar(tag, record[name]))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            raise _not_written(self._folder, error) from error

    def _add(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Writes what is left.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self._writer.close()
        except OSError as error:
            raise _not_written(self._folder, error) from error
