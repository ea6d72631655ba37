"""A new run: check, prepare, move in place, train.

Everything given is read and checked before anything appears at the run's folder.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.base import content_encoder_file, file_sha256
from mlx_vits.checkpoints.run_info import RunInfo, is_run
from mlx_vits.checkpoints.upstream_run import UpstreamRun
from mlx_vits.checkpoints.voice_file import VoiceFile
from mlx_vits.errors import UserError
from mlx_vits.finetune.data import PREPARED
from mlx_vits.finetune.gpt_stage import check_languages, prepare_gpt_stage, read_pretrained_gpt
from mlx_vits.finetune.nets import load_nets, read_base
from mlx_vits.finetune.options import FinetuneOptions, Screen
from mlx_vits.finetune.run import FinetuneRun
from mlx_vits.finetune.scratch import draw_start, keep_start
from mlx_vits.finetune.takeover import carry_over, check_version
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepare import PrepareOptions, check_speaker_encoder, prepare_voice
from mlx_vits.system.files import fresh_folder, move_folder, single_name
from mlx_vits.system.locks import WriterLock, check_is_free
from mlx_vits.training.log import check_tensorboard


def start(options: FinetuneOptions, screen: Screen) -> dict[str, Any]:
    """Prepare the data and run a new fine-tune.

    Args:
        options: what to do. An earlier run at `output` is moved aside, not deleted.
        screen: where progress is reported.

    Returns:
        The verdict, as written to `verdict.json`.

    Raises:
        UserError: something given cannot be used, or training stopped itself.
    """
    return _start(options, screen, None)


def take_over(options: FinetuneOptions, run: UpstreamRun, screen: Screen) -> dict[str, Any]:
    """Continue a run of GPT-SoVITS, or one that was handed over to it, as a run of our own.

    Args:
        options: as of `start`, from `options_for`. If the base's generator is the run's own file,
            the pretrained weights are unknown: the pull and the verdict then refer to the weights
            as they came.
        run: its state.
        screen: where progress is reported.

    Returns:
        The verdict.

    Raises:
        UserError: as of `start`, or there is nothing left to do.
    """
    return _start(options, screen, run)


def _start(
    options: FinetuneOptions, screen: Screen, upstream: UpstreamRun | None
) -> dict[str, Any]:
    options = replace(options, output=options.output.resolve(), data=options.data.resolve())
    single_name(options.voice, "--voice")
    _check_output(options)
    if options.tensorboard:
        check_tensorboard()
    scratch = options.from_scratch
    if scratch is not None:
        options = replace(options, base=replace(options.base, discriminator=None))
        file = draw_start(scratch, options.base, options.training)
    else:
        file = read_base(options.base, options.training.segment_size)
    if upstream is not None:
        check_version(upstream, options.base, file.config)
    nets = load_nets(options.base, file, options.training)
    if options.trains_gpt:
        read_pretrained_gpt(options, nets.generator)
    with contextlib.ExitStack() as stack:
        with fresh_folder(options.output) as fresh:
            lock = stack.enter_context(WriterLock(fresh))
            info = _prepare(options, file, fresh, screen)
            prepared = fresh / info.prepared
            voice = options.open_voice(prepared, file.config)
            for reason in voice.dropped if voice else ():
                screen.warn(f"Left out: {reason}")
            if scratch is not None:
                info = keep_start(scratch, nets.generator, fresh, info)
            options = _settle_stage(options, prepared, nets.generator, screen)
            if options.trains_gpt:
                info = options.record_gpt(info, fresh)
            if upstream is not None and voice is not None:
                info = carry_over(upstream, fresh, options, voice, info)
            info.write(fresh)
            _move_aside(options.output, screen)
            move_folder(fresh, options.output)
            lock.folder = options.output
        prepared = options.output / info.prepared
        if voice is not None:
            voice.move(prepared)
        run = FinetuneRun(options, file.config, nets, prepared, voice, screen)
        del nets  # the run lets go of them between its stages
        return run.run()


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
    """Prepare the clips within `fresh`, or check the prepared folder that was given."""
    base, config = options.base, file.config
    if layout.is_prepared(options.data):
        encoder = base.content_encoder
        sha256 = file_sha256(content_encoder_file(encoder)) if encoder else None
        layout.check_fits(options.data, config, sha256, base.name)
        return options.record(str(options.data), fresh, file.source)
    if config.model.is_pro:
        check_speaker_encoder(base, config)
    # Beside the run, under a name that lasts: an interrupted preparation goes on from there.
    growing = options.output.with_name(f".{options.output.name}.prepared")
    prepare_voice(
        options.data,
        growing,
        base,
        config,
        PrepareOptions(
            options.language,
            options.held_out,
            options.transcripts,
            options.strict,
            earlier=[options.output / PREPARED],
        ),
        progress=screen.preparing,
        drop=lambda clip: screen.warn(f"Left out: {clip.reason}"),
        notice=screen.warn,
    )
    move_folder(growing, fresh / PREPARED)
    return options.record(PREPARED, fresh, file.source)


def _settle_stage(
    options: FinetuneOptions, prepared: Path, generator: SynthesizerTrn, screen: Screen
) -> FinetuneOptions:
    """Prepare what the GPT is trained on; where nobody asked for it, only if that is possible."""
    if options.trains_gpt:
        prepare_gpt_stage(options, prepared, generator, screen)
    if options.stage is not None:
        return options
    try:
        check_languages(options, prepared)
        prepare_gpt_stage(options, prepared, generator, screen)
    except UserError as error:
        screen.say(f"Only SoVITS is trained, not the GPT: {error}.")
        return replace(options, stage="sovits")
    screen.say("Both stages are trained, SoVITS and the GPT; --stage sovits leaves the GPT out.")
    return replace(options, stage="both")


def _move_aside(output: Path, screen: Screen) -> None:
    """Rename an earlier run at the same place after its date."""
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
