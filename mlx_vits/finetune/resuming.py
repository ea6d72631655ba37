"""A run goes on from its last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.finetune.nets import load_nets, read_base
from mlx_vits.finetune.options import FinetuneOptions, Screen, change_options
from mlx_vits.finetune.run import FinetuneRun
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.system.files import sweep, tidy
from mlx_vits.system.locks import WriterLock
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.log import check_tensorboard


def resume(folder: Path, screen: Screen, **changes: Any) -> dict[str, Any]:
    """Continue a run from its last checkpoint.

    Args:
        folder: the run's; it may have been moved.
        screen: where progress is reported.
        changes: new values of options, of `RESUME_OPTIONS`.

    Returns:
        The verdict.

    Raises:
        UserError: the folder is not a run's, or its base or its data are gone or changed.
    """
    folder = folder.resolve()
    info = change_options(RunInfo.read(folder), changes)
    with WriterLock(folder):
        tidy(folder)
        sweep(folder)
        return _resume(folder, info, screen)


def _resume(folder: Path, info: RunInfo, screen: Screen) -> dict[str, Any]:
    options = FinetuneOptions.of_run(info, folder)
    if options.tensorboard:
        check_tensorboard()
    file = read_base(options.base, options.training.segment_size)
    if file_sha256(file.source) != info.generator_sha256:
        raise CheckpointError(
            f"{file.source}: is not the file that the run in {folder} was started from; put that "
            "back, or start a new run"
        )
    prepared = folder / info.prepared
    if not layout.is_prepared(prepared) or layout.fingerprint(prepared) != info.prepared_sha256:
        raise DataError(
            f"{prepared}: is not the data that the run in {folder} was started with; put that "
            "back, or start a new run"
        )
    nets = load_nets(options.base, file, options.training)
    voice = PreparedVoice(prepared, file.config)
    info.write(folder)
    return FinetuneRun(options, file.config, nets, voice, screen).run()
