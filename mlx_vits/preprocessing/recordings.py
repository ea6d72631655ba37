"""Long recordings to a folder of clips, cut at their silences.

Each recording passes by in blocks, so that memory does not grow with its length. Slices are
levelled as GPT-SoVITS's slicer does, and named `RECORDING_START_END.wav`, in samples.

Source: GPT-SoVITS `tools/slice_audio.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_vits.audio.files import write_wav
from mlx_vits.audio.formats import open_recording
from mlx_vits.audio.streams import stream_recording
from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.config import DataSection
from mlx_vits.errors import DataError, UserError
from mlx_vits.files import atomic_write, make_folder
from mlx_vits.preprocessing.quality import is_too_long, longest_seconds
from mlx_vits.preprocessing.slicer import (
    FLAGS,
    SliceSettings,
    Span,
    find_slices,
    frame_levels,
    settings_that_cut,
)

SLICE_RATE = 32000
LONGEST_CLIP_SECONDS = 15.0  # a shorter recording is taken for a clip, and kept in one piece
_MADE = "slices.json"
_PEAK, _MIX = 0.9, 0.25  # upstream's slicer: a quarter at a common peak, the rest as it was
_FORMAT = 1
_DATA = DataSection()  # every version's


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


def slice_recordings(
    recordings: Sequence[Path],
    folder: Path,
    settings: SliceSettings | None = None,
    *,
    changes: Mapping[str, float] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    forget: Callable[[list[str]], None] | None = None,
) -> list[SliceFile]:
    """Cuts recordings into clips; one that was cut before and has not changed is left alone.

    Args:
        recordings: files of any length; one of up to `LONGEST_CLIP_SECONDS` stays in one piece.
        folder: of the clips, made if it is missing.
        settings: where to cut; None for how a recording was cut before, or else the defaults.
        changes: fields of `settings` that are to be different.
        progress: called with recordings done, recordings in all and the recording's name.
        forget: called with the names of earlier slices that are no longer there.

    Returns:
        The slices, in order. A silent one is not written.

    Raises:
        DataError: a recording cannot be read, or two have one name.
        UserError: one needs ffmpeg, which is not installed; `folder` cannot be written; or the
            settings do not fit each other.
    """
    names = [path.name for path in recordings]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise DataError(f"{twins[0]}: two recordings have this name; rename one")
    make_folder(folder)
    made = _read_made(folder)
    slices: list[SliceFile] = []
    for number, path in enumerate(recordings, 1):
        before = made.get(path.name, {})
        chosen = _change(settings or _settings_of(before), changes or {})
        same = f"{_FORMAT} {file_sha256(path)} "
        key = same + json.dumps(asdict(chosen))
        spans = [Span(*span) for span in before.get("spans", [])]
        is_there = all((folder / _slice_name(path.name, span)).is_file() for span in spans)
        if before.get("key") != key or not is_there:
            new = _find_spans(path, chosen)
            # Slices of the same samples stay, with what the user has made of their transcripts.
            kept = new if str(before.get("key")).startswith(same) else []
            gone = [_slice_name(path.name, span) for span in spans if span not in kept]
            for name in gone:
                (folder / name).unlink(missing_ok=True)
            if forget and gone:
                forget(gone)
            spans = _write_slices(path, folder, new)
            made[path.name] = {"key": key, "spans": [list(span) for span in spans]}
            with atomic_write(folder / _MADE) as file:
                file.write(json.dumps(made, indent=1).encode())
        slices += [SliceFile(_slice_name(path.name, span), path.name, span) for span in spans]
        if progress:
            progress(number, len(recordings), path.name)
    return slices


def _slice_name(recording: str, span: Span) -> str:
    return f"{recording}_{span.start:010d}_{span.end:010d}.wav"


def _read_made(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / _MADE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _settings_of(made: Mapping[str, Any]) -> SliceSettings:
    """What a recording was cut with before, the defaults where that is not known."""
    try:
        return SliceSettings(**json.loads(str(made["key"]).split(" ", 2)[2]))
    except (KeyError, IndexError, TypeError, ValueError):
        return SliceSettings()


def _change(settings: SliceSettings, changes: Mapping[str, Any]) -> SliceSettings:
    try:
        return replace(settings, **changes)
    except ValueError as error:
        minimum, pause = FLAGS["min_length_ms"], FLAGS["min_interval_ms"]
        raise UserError(
            f"{' and '.join(FLAGS[name] for name in changes)}: cannot cut a recording; give "
            f"{minimum} at least as much as {pause}, and that at least 40"
        ) from error


def describe_long_slices(path: Path, slices: Sequence[SliceFile], folder: Path) -> str:
    """Says that slices of a recording are too long for clips, and which options would cut them.

    Args:
        path: the recording.
        slices: those that are too long.
        folder: of the clips, where the recording was cut.
    """
    settings = _settings_of(_read_made(folder).get(path.name, {}))
    longest = longest_seconds(_DATA)
    seconds = [(piece.span.end - piece.span.start) / SLICE_RATE for piece in slices]
    shown = f"{max(seconds):.0f} s" if len(slices) == 1 else f"up to {max(seconds):.0f} s"
    levels, samples = _measure(path, settings)
    limit = int(longest * SLICE_RATE)
    better = settings_that_cut(levels, samples, SLICE_RATE, settings, limit)
    cure = "cut it by hand into clips of 3 to 10 s, or take it out"
    if better is not None:
        flags = [
            f"{flag} {value:g}"
            for name, flag in FLAGS.items()
            if (value := getattr(better, name)) != getattr(settings, name)
        ]
        cure = f"give {' '.join(flags)} to cut it at weaker pauses, or cut it by hand"
    return (
        f"{path.name}: {len(slices)} slice{'s' if len(slices) > 1 else ''} of {shown}, at most "
        f"{longest:.0f} s make a clip; no pause of {settings.min_interval_ms / 1000:g} s below "
        f"{settings.threshold_db:g} dB cuts {'them' if len(slices) > 1 else 'it'}: {cure}."
    )


def is_too_long_slice(piece: SliceFile) -> bool:
    """Whether a slice cannot be a clip to train on."""
    return is_too_long(piece.span.end - piece.span.start, _DATA)


class _Measured(NamedTuple):
    levels: np.ndarray
    samples: int


def _measure(path: Path, settings: SliceSettings) -> _Measured:
    """The level of every frame of a recording."""
    samples = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in stream_recording(path, SLICE_RATE):
            samples += len(block)
            yield block

    levels = frame_levels(counted(), settings.window(SLICE_RATE), settings.hop(SLICE_RATE))
    return _Measured(levels, samples)


def _find_spans(path: Path, settings: SliceSettings) -> list[Span]:
    """Where the slices of one recording lie, silent ones among them."""
    with open_recording(path) as file:
        is_clip = file.frames <= LONGEST_CLIP_SECONDS * file.samplerate
    levels, samples = _measure(path, settings)
    if samples == 0:
        raise DataError(f"{path}: holds no sound; take it out")
    return [Span(0, samples)] if is_clip else find_slices(levels, samples, SLICE_RATE, settings)


def _write_slices(path: Path, folder: Path, spans: list[Span]) -> list[Span]:
    """Writes the slices of one recording; those that are not silent."""
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
