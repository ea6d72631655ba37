"""Long recordings to a folder of clips, cut at their silences.

Each recording passes by in blocks, so that memory does not grow with its length. Slices are
levelled as GPT-SoVITS's slicer does, and named `RECORDING_START_END.wav`, in samples.

Source: GPT-SoVITS `tools/slice_audio.py`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_vits.audio.files import write_wav
from mlx_vits.audio.formats import open_recording
from mlx_vits.audio.streams import stream_recording
from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.errors import DataError
from mlx_vits.files import atomic_write, make_folder
from mlx_vits.json_files import read_json
from mlx_vits.preprocessing.slicer import SliceSettings, Span, find_slices, frame_levels

SLICE_RATE = 32000
LONGEST_CLIP_SECONDS = 15.0  # a shorter recording is taken for a clip, and kept in one piece
_MADE = "slices.json"
_PEAK, _MIX = 0.9, 0.25  # upstream's slicer: a quarter at a common peak, the rest as it was
_FORMAT = 1


class SliceFile(NamedTuple):
    """A slice that was written.

    Attributes:
        name: of its file.
        recording: that it was cut from.
        span: where, in samples at `SLICE_RATE`.
    """

    name: str
    recording: str
    span: Span


@dataclass(frozen=True)
class _Made:
    """What a recording was cut into, and the key of what that depends on."""

    key: str
    spans: tuple[tuple[int, int], ...]


def slice_recordings(
    recordings: Sequence[Path],
    folder: Path,
    settings: SliceSettings | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
    forget: Callable[[list[str]], None] | None = None,
) -> list[SliceFile]:
    """Cuts recordings into clips; one that was cut before and has not changed is left alone.

    Args:
        recordings: files of any length; one of up to `LONGEST_CLIP_SECONDS` stays in one piece.
        folder: of the clips, made if it is missing.
        settings: where to cut.
        progress: called with recordings done, recordings in all and the recording's name.
        forget: called with the names of earlier slices of a recording that has changed.

    Returns:
        The slices, in order. A silent one is not written.

    Raises:
        DataError: a recording cannot be read, or two have one name.
        UserError: one needs ffmpeg, which is not installed; or `folder` cannot be written.
    """
    settings = settings or SliceSettings()
    names = [path.name for path in recordings]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise DataError(f"{twins[0]}: two recordings have this name; rename one")
    make_folder(folder)
    made = _read_made(folder)
    slices: list[SliceFile] = []
    for number, path in enumerate(recordings, 1):
        key = f"{_FORMAT} {file_sha256(path)} {json.dumps(asdict(settings))}"
        before = made.get(path.name, _Made("", ()))
        spans = [Span(*span) for span in before.spans]
        is_there = all((folder / _slice_name(path.name, span)).is_file() for span in spans)
        if before.key != key or not is_there:
            changed = before.key != key
            for span in spans if changed else ():
                (folder / _slice_name(path.name, span)).unlink(missing_ok=True)
            if forget and changed:
                forget([_slice_name(path.name, span) for span in spans])
            spans = _slice_one(path, folder, settings)
            made[path.name] = _Made(key, tuple(spans))
            table = {name: asdict(one) for name, one in made.items()}
            with atomic_write(folder / _MADE) as file:
                file.write(json.dumps(table, indent=1).encode())
        slices += [SliceFile(_slice_name(path.name, span), path.name, span) for span in spans]
        if progress:
            progress(number, len(recordings), path.name)
    return slices


def _slice_name(recording: str, span: Span) -> str:
    return f"{recording}_{span.start:010d}_{span.end:010d}.wav"


def _read_made(folder: Path) -> dict[str, _Made]:
    # Where it is missing or damaged, all recordings are cut again, which gives the same slices.
    with contextlib.suppress(DataError):
        return read_json(folder / _MADE, dict[str, _Made], error=DataError, cure="")
    return {}


def _slice_one(path: Path, folder: Path, settings: SliceSettings) -> list[Span]:
    """Writes the slices of one recording; where they lie."""
    with open_recording(path) as file:
        is_clip = file.frames <= LONGEST_CLIP_SECONDS * file.samplerate
    samples = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in stream_recording(path, SLICE_RATE):
            samples += len(block)
            yield block

    levels = frame_levels(counted(), settings.window(SLICE_RATE), settings.hop(SLICE_RATE))
    if samples == 0:
        raise DataError(f"{path}: holds no sound; take it out")
    spans = [Span(0, samples)] if is_clip else find_slices(levels, samples, SLICE_RATE, settings)
    written = []
    for span, wav in _take(stream_recording(path, SLICE_RATE), spans):
        levelled = _level(wav)
        if levelled is not None:
            write_wav(folder / _slice_name(path.name, span), levelled, SLICE_RATE)
            written.append(span)
    return written


class _Slice(NamedTuple):
    span: Span
    wav: np.ndarray


def _take(blocks: Iterable[np.ndarray], spans: Sequence[Span]) -> Iterator[_Slice]:
    """The samples of each span, in order, while the recording passes by."""
    waiting, at = list(spans), 0
    parts: list[np.ndarray] = []
    for block in blocks:
        end = at + len(block)
        while waiting and waiting[0].start < end:
            span = waiting[0]
            parts.append(block[max(0, span.start - at) : span.end - at])
            if span.end > end:
                break
            yield _Slice(span, np.concatenate(parts))
            waiting.pop(0)
            parts = []
        at = end


def _level(wav: np.ndarray) -> np.ndarray | None:
    """A quarter at peak 0.9, three quarters as it was, as int16; None for silence."""
    peak = float(np.abs(wav).max(initial=0.0))
    if peak == 0:
        return None
    if peak > 1:
        wav = wav / peak
    # Upstream divides by the peak that it has already divided by, where that was above 1.
    mixed = wav / peak * (_PEAK * _MIX) + (1 - _MIX) * wav
    return (mixed * 32767).astype(np.int16)
