"""Fine-tuning from beginning to end: a new run, or one that goes on.

It holds the order of things; each of them lives in a module of its own.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits.checkpoints.base import Base, content_encoder_file, file_sha256
from mlx_vits.checkpoints.contents import has_posterior
from mlx_vits.checkpoints.run import CHECKPOINTS, LAST, Place, RunState, write_run_state
from mlx_vits.checkpoints.run_info import RUN_FILE, RunInfo, RunOptions, is_run
from mlx_vits.checkpoints.upstream_run import UpstreamRun
from mlx_vits.checkpoints.voice_file import VoiceFile, write_voice
from mlx_vits.errors import CheckpointError, DataError, UserError
from mlx_vits.finetune.run import FinetuneOptions, FinetuneRun, Screen, load_nets
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepare import PrepareOptions, check_speaker_encoder, prepare_voice
from mlx_vits.system.files import fresh_folder, move_folder, single_name, sweep, tidy
from mlx_vits.system.locks import WriterLock, check_is_free
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.log import check_tensorboard
from mlx_vits.training.vits_trainer import VITSTrainingConfig

PREPARED = "prepared"
# On a resume.
CHANGEABLE_TRAINING = (
    "epochs",
    "steps",
    "blend",
    "blend_prior",
    "precision",
    "compiled",
    "checkpoint_activations",
)
TAKEN_OVER = "taken_over.safetensors"  # a run's weights, where its pretrained ones are not known

__all__ = ["CHANGEABLE_TRAINING", "FinetuneOptions", "Screen", "resume", "start", "take_over"]


def start(options: FinetuneOptions, screen: Screen) -> dict[str, Any]:
    """Prepares the data and runs a new fine-tune.

    Everything given is read and checked before anything is made at `output`.

    Args:
        options: what to do. An earlier run at `output` is moved aside, not deleted.

    Returns:
        The verdict, as written to `verdict.json`.

    Raises:
        UserError: something given cannot be used, or training stopped itself.
    """
    return _start(options, screen, None)


def take_over(options: FinetuneOptions, run: UpstreamRun, screen: Screen) -> dict[str, Any]:
    """Goes on with a run of GPT-SoVITS, or one that was handed over to it, as a run of our own.

    Args:
        options: as of `start`. Where the base's generator is the run's own file, the pretrained
            weights are not known: the pull and the verdict then refer to the weights as they came.
        run: its state.

    Returns:
        The verdict.

    Raises:
        UserError: as of `start`, or there is nothing left to do.
    """
    return _start(options, screen, run)


def _start(options: FinetuneOptions, screen: Screen, run: UpstreamRun | None) -> dict[str, Any]:
    options = replace(options, output=options.output.resolve(), data=options.data.resolve())
    single_name(options.voice, "--voice")
    _check_output(options)
    if options.tensorboard:
        check_tensorboard()
    file = read_base(options)
    if run is not None and run.generator.config.version != file.config.version:
        raise CheckpointError(
            f"{run.path}: is a {run.generator.config.version} run, but the base {options.base.name}"
            f" is {file.config.version}; give the base that the run was started from"
        )
    nets = load_nets(options, file)
    with contextlib.ExitStack() as stack:
        with fresh_folder(options.output) as fresh:
            lock = stack.enter_context(WriterLock(fresh))
            info = _prepare(options, file, fresh, screen)
            voice = PreparedVoice(fresh / info.prepared, file.config)
            for reason in voice.dropped:
                screen.warn(f"Left out: {reason}")
            if run is not None:
                state = _state_of(run, voice, options)
                write_run_state(fresh / CHECKPOINTS / LAST, state.trees, state.place)
                if options.base.generator == run.path:
                    info = _keep_generator(info, run, fresh)
            info.write(fresh)
            _move_aside(options.output, screen)
            move_folder(fresh, options.output)
            lock.folder = options.output
        return FinetuneRun(options, info, file.config, nets, screen).run()


def _state_of(run: UpstreamRun, voice: PreparedVoice, options: FinetuneOptions) -> RunState:
    """The state that a run is taken over in; upstream itself knows no place within an epoch."""
    training = options.training
    count = len(voice.plan(training.clips_a_step, training.seed, 1))
    if run.side is not None:
        place = run.side.place
    else:
        place = Place(step=run.iteration * count, epoch=run.iteration + 1)
    total = training.steps if training.steps is not None else training.epochs * count
    if place.step >= total:
        raise UserError(
            f"{run.path}: has done its {place.step} steps ({run.iteration} epochs) already; give "
            "more with --epochs or --steps"
        )
    return RunState(place, run.trees)


def _keep_generator(info: RunInfo, run: UpstreamRun, folder: Path) -> RunInfo:
    """Keeps the weights that a run was taken over with: GPT-SoVITS may replace its file."""
    path, voice = folder / TAKEN_OVER, run.generator
    arrays = {name: mx.array(tensor) for name, tensor in voice.tensors.items()}
    write_voice(path, arrays, voice.config, info=voice.info, name=info.voice)
    return replace(info, generator=TAKEN_OVER, generator_sha256=file_sha256(path))


def resume(folder: Path, screen: Screen, **changes: Any) -> dict[str, Any]:
    """Continues a run from its last checkpoint.

    Args:
        folder: the run's; it may have been moved.
        changes: `save_every`, `tensorboard` or options of training, where they are to be different.

    Returns:
        The verdict.

    Raises:
        UserError: the folder is not a run's, or its base or its data are gone or changed.
    """
    folder = folder.resolve()
    info = _changed(RunInfo.read(folder), changes)
    with WriterLock(folder):
        tidy(folder)
        sweep(folder)
        return _resume(folder, info, screen)


def _resume(folder: Path, info: RunInfo, screen: Screen) -> dict[str, Any]:
    options = FinetuneOptions(
        voice=info.voice,
        data=Path(info.data),
        base=Base(
            info.base,
            folder / info.generator,
            Path(info.discriminator) if info.discriminator else None,
            Path(info.content_encoder) if info.content_encoder else None,
        ),
        output=folder,
        training=VITSTrainingConfig.of_run(info.options.training, folder / RUN_FILE),
        language=info.language,
        save_every=info.options.save_every,
        tensorboard=info.options.tensorboard,
    )
    if options.tensorboard:
        check_tensorboard()
    file = read_base(options)
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
    nets = load_nets(options, file)
    info.write(folder)
    return FinetuneRun(options, info, file.config, nets, screen).run()


def read_base(options: FinetuneOptions) -> VoiceFile:
    """The base's generator, if this voice can be trained from it.

    Raises:
        UserError: it cannot; the sentence says why.
    """
    file = options.base.read_generator()
    config = file.config
    if not has_posterior(file.tensors):
        raise CheckpointError(
            f"{file.source}: is an exported voice without a posterior encoder (enc_q), which "
            "training needs; give a pretrained s2G file"
        )
    size, hop = options.training.segment_size, config.data.hop_length
    if size % hop:
        raise UserError(f"--segment-size {size}: has to be a multiple of {hop}")
    return file._replace(config=replace(config, train=replace(config.train, segment_size=size)))


def _check_output(options: FinetuneOptions) -> None:
    output = options.output
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; choose a folder for --output")
    if output.is_dir() and not is_run(output) and any(output.iterdir()):
        raise UserError(
            f"{output}: is not empty and not a run of mlx_vits; choose another --output"
        )
    check_is_free(output)
    if output == options.data or output in options.data.parents:
        raise UserError(
            f"{options.data}: lies within --output {output}, which a new run replaces; choose "
            "another --output"
        )


def _prepare(options: FinetuneOptions, file: VoiceFile, fresh: Path, screen: Screen) -> RunInfo:
    """Prepares the clips within `fresh`, or checks the folder that was given."""
    base, config = options.base, file.config
    if config.model.is_pro and not layout.is_prepared(options.data):
        check_speaker_encoder(base, config)
    if layout.is_prepared(options.data):
        encoder = base.content_encoder
        sha256 = file_sha256(content_encoder_file(encoder)) if encoder else None
        layout.check_fits(options.data, config, sha256, base.name)
        prepared = str(options.data)
    else:
        # Beside the run, under a name that lasts: an interrupted preparation goes on from there.
        growing = options.output.with_name(f".{options.output.name}.prepared")
        wished = PrepareOptions(
            options.language,
            options.held_out,
            options.transcripts,
            options.strict,
            earlier=[options.output / PREPARED],
        )
        prepare_voice(
            options.data,
            growing,
            base,
            config,
            wished,
            progress=screen.preparing,
            drop=lambda clip: screen.warn(f"Left out: {clip.reason}"),
            notice=screen.warn,
        )
        move_folder(growing, fresh / PREPARED)
        prepared = PREPARED
    return RunInfo(
        voice=options.voice,
        data=str(options.data),
        prepared=prepared,
        prepared_sha256=layout.fingerprint(fresh / prepared),
        base=base.name,
        generator=str(base.generator.resolve()),
        discriminator=str(base.discriminator.resolve()) if base.discriminator else "",
        content_encoder=str(base.content_encoder.resolve()) if base.content_encoder else "",
        generator_sha256=file_sha256(file.source),
        language=options.language,
        options=RunOptions(asdict(options.training), options.save_every, options.tensorboard),
    )


def _changed(info: RunInfo, changes: dict[str, Any]) -> RunInfo:
    """The run's options with those that a resume may change."""
    given = {name: value for name, value in changes.items() if value is not None}
    training = dict(info.options.training)
    if "epochs" in given:
        training["steps"] = None  # a limit in steps would hide the new one
    training |= {name: given.pop(name) for name in CHANGEABLE_TRAINING if name in given}
    return replace(info, options=replace(info.options, **given, training=training))


def _move_aside(output: Path, screen: Screen) -> None:
    if not is_run(output):
        return
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(output.stat().st_mtime))
    aside, number = output.with_name(f"{output.name}-{stamp}"), 2
    while aside.exists():
        aside = output.with_name(f"{output.name}-{stamp}-{number}")
        number += 1
    with WriterLock(output) as lock:
        move_folder(output, aside)
        lock.folder = aside
    screen.say(f"The earlier run is kept in {aside}.")
