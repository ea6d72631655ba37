"""Clips and transcripts to a prepared folder.

The folder appears under its name only when every clip is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_vits.audio.files import read_seconds, read_speech, write_wav
from mlx_vits.checkpoints.base import (
    Base,
    content_encoder_file,
    file_sha256,
    load_content_encoder,
)
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.files import make_folder, replace_folder, temporary_sibling
from mlx_vits.models.hubert import HubertModel
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.features import speech_features
from mlx_vits.preprocessing.levels import mix_level, to_int16
from mlx_vits.preprocessing.prepared import Manifest, SourceClip, TextLine
from mlx_vits.preprocessing.sources import Clip, VoiceSource, read_voice_source
from mlx_vits.text import CleanText, clean_text

Progress = Callable[[int, int, str], None]


class _Prepared(NamedTuple):
    """One clip, ready to be written."""

    clip: Clip
    samples: np.ndarray  # (N,) int16 at the model's rate
    features: np.ndarray  # (S, C)
    text: CleanText


def prepare_voice(
    source: Path,
    output: Path,
    base: Base,
    config: Config,
    *,
    language: str = "en",
    held_out: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Prepares a folder of clips, or returns the one that is there already and fits.

    Args:
        source: clips with `transcripts.tsv`.
        output: the prepared folder. An older one that this project prepared and that no longer
            fits is replaced once the new one is whole; anything else there is refused.
        base: gives the content encoder.
        config: of the base's generator.
        language: of the transcripts.
        held_out: see `read_voice_source`.
        progress: called with clips done, clips in all and the clip's name.

    Returns:
        `output`.

    Raises:
        DataError: a clip or transcript cannot be used, or `output` holds something else; it is
            named, and nothing is written.
        CheckpointError: the base has no content encoder, or one of another width.
    """
    voice = read_voice_source(source, held_out)
    _check_output(source.resolve(), output.resolve())
    manifest = _manifest(voice, base, config, language)
    if layout.is_prepared(output) and Manifest.read(output) == manifest:
        return output
    encoder = load_content_encoder(_encoder_folder(base))
    if encoder.config.hidden_size != config.reduced_dims.ssl_dim:
        raise CheckpointError(
            f"{base.content_encoder}: gives features {encoder.config.hidden_size} wide, the "
            f"generator {base.generator} needs {config.reduced_dims.ssl_dim}; give the content "
            "encoder that it was trained with"
        )
    partial = temporary_sibling(output)
    try:
        _write_all(partial, voice, encoder, config, language, progress)
        manifest.write(partial)
        replace_folder(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def _check_output(source: Path, output: Path) -> None:
    if output == source or output in source.parents or source in output.parents:
        raise DataError(f"{output}: lies in the same place as the clips; choose another folder")
    if not output.exists():
        return
    if not output.is_dir():
        raise DataError(f"{output}: is a file; choose a folder")
    ours = layout.is_prepared(output) and (output / layout.MANIFEST).is_file()
    if any(output.iterdir()) and not ours:
        raise DataError(f"{output}: holds something else; choose an empty or a new folder")


def _encoder_folder(base: Base) -> Path:
    if base.content_encoder is None:
        raise CheckpointError(
            f"{base.name}: has no content encoder, which preparing a voice needs; give its folder "
            "with --content-encoder"
        )
    return base.content_encoder


def _manifest(voice: VoiceSource, base: Base, config: Config, language: str) -> Manifest:
    held_out = {clip.name for clip in voice.held_out}
    sources = []
    for clip in voice.clips:
        seconds, sha256 = round(read_seconds(clip.path), 3), file_sha256(clip.path)
        sources.append(SourceClip(clip.name, sha256, seconds, clip.text, clip.name in held_out))
    return Manifest(
        content_encoder=base.name,
        content_encoder_sha256=file_sha256(content_encoder_file(_encoder_folder(base))),
        ssl_dim=config.reduced_dims.ssl_dim,
        version=config.version,
        language=language,
        sources=tuple(sources),
    )


def _write_all(
    folder: Path,
    voice: VoiceSource,
    encoder: HubertModel,
    config: Config,
    language: str,
    progress: Progress | None,
) -> None:
    done, count = 0, len(voice.clips)
    for part, clips in (
        (folder, voice.training),
        (folder / layout.HELD_OUT_FOLDER, voice.held_out),
    ):
        for name in (layout.SSL_FOLDER, layout.WAV_FOLDER):
            make_folder(part / name)
        lines, counts = [], []
        for clip in clips:
            ready = _prepare_clip(clip, encoder, config, language)
            write_wav(
                part / layout.WAV_FOLDER / clip.name, ready.samples, config.data.sampling_rate
            )
            layout.write_features(part / layout.SSL_FOLDER / f"{clip.name}.pt", ready.features)
            lines.append(TextLine(clip.name, ready.text.phonemes, ready.text.normalized))
            counts.append(ready.text.word2ph)
            done += 1
            if progress:
                progress(done, count, clip.name)
        layout.write_text_lines(part / layout.TEXT_FILE, lines, counts)


def _prepare_clip(clip: Clip, encoder: HubertModel, config: Config, language: str) -> _Prepared:
    data = config.data
    wav = read_speech(clip.path, data.sampling_rate)
    frames = len(wav) // data.hop_length
    shortest = layout.SHORTEST_FRAMES * data.hop_length / data.sampling_rate
    longest = layout.LONGEST_FRAMES * data.hop_length / data.sampling_rate
    if frames < layout.SHORTEST_FRAMES:
        raise DataError(
            f"{clip.path}: is {len(wav) / data.sampling_rate:.2f} s long; clips need at least "
            f"{shortest:.2f} s, so take it out or join it with the next"
        )
    if frames > layout.LONGEST_FRAMES:
        raise DataError(
            f"{clip.path}: is {len(wav) / data.sampling_rate:.0f} s long; cut it into clips of 3 "
            f"to 10 s (at most {longest:.0f} s)"
        )
    try:
        text = clean_text(clip.text, language, config.version)
    except DataError as error:
        raise DataError(f"{clip.path}: {error}") from error
    samples = to_int16(mix_level(wav, str(clip.path)))
    features = speech_features(encoder, wav, data.sampling_rate, str(clip.path))
    return _Prepared(clip, samples, features, text)
