"""A run goes on from its last checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.errors import CheckpointError, DataError, UserError
from mlx_vits.finetune.gpt_stage import prepare_gpt_stage
from mlx_vits.finetune.nets import load_nets, read_base
from mlx_vits.finetune.options import FinetuneOptions, Screen, change_options
from mlx_vits.finetune.run import FinetuneRun
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.synthesis.gpt import find_gpt_path
from mlx_vits.system.files import sweep, tidy
from mlx_vits.system.locks import WriterLock
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
    before = RunInfo.read(folder)
    info = change_options(before, changes)
    if info.options.stage not in (before.options.stage, "both"):
        raise UserError(
            f"--stage {info.options.stage}: {folder} has trained another stage already; --stage "
            "both adds this one to it"
        )
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
    if options.trains_gpt:
        options, info = _with_gpt(options, info, nets.generator, screen)
    voice = options.open_voice(prepared, file.config)
    info.write(folder)
    run = FinetuneRun(options, file.config, nets, prepared, voice, screen)
    del nets  # the run lets go of them between its stages
    return run.run()


def _with_gpt(
    options: FinetuneOptions, info: RunInfo, generator: SynthesizerTrn, screen: Screen
) -> tuple[FinetuneOptions, RunInfo]:
    """Find the GPT that is to be trained, and what it is trained on; both as they were.

    Raises:
        UserError: they are gone or changed, or there never was a GPT.
    """
    folder = options.output
    is_new = not info.gpt
    if is_new:
        options = replace(options, base=replace(options.base, gpt=find_gpt_path(folder)))
    prepared = folder / info.prepared
    prepare_gpt_stage(options, prepared, generator, screen)
    found = options.record_gpt(info, folder)
    if not is_new and found.gpt_sha256 != info.gpt_sha256:
        raise CheckpointError(
            f"{options.gpt}: is not the GPT that the run in {folder} was started from; put that "
            "back, or start a new run"
        )
    if not is_new and found.gpt_data_sha256 != info.gpt_data_sha256:
        raise DataError(
            f"{prepared}: its codes or BERT features are not those that the run in {folder} was "
            "started with; put them back, or start a new run"
        )
    return options, found
