"""Cut long recordings into a folder of clips, at silences or by their subtitles.

Recordings are streamed, so memory does not grow with their length. Slices are levelled as by
GPT-SoVITS's slicer, and named `RECORDING_START_END.wav`, in samples.

Source: GPT-SoVITS `tools/slice_audio.py`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_vits.audio.files import write_wav
from mlx_vits.audio.streams import Stream, describe_channel, open_stream
from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.config import DataSection
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.cues import Cue
from mlx_vits.preprocessing.quality import is_too_long, longest_seconds
from mlx_vits.preprocessing.slicer import (
    FLAGS,
    SliceSettings,
    Span,
    find_slices,
    frame_levels,
    settings_that_cut,
)
from mlx_vits.system.files import atomic_write, make_folder
from mlx_vits.system.json_files import parse_json, read_json

SLICE_RATE = 32000
LONGEST_CLIP_SECONDS = 15.0  # a shorter recording is a clip already and is not cut
_RECORDS_FILE = "slices.json"
_PEAK, _MIX = 0.9, 0.25  # upstream's slicer: 1/4 peak-normalised, 3/4 unchanged
_FORMAT = 1
_DATA = DataSection()  # the same for every version

Notice = Callable[[str], None]


class SliceFile(NamedTuple):
    """A slice on disk.

    Attributes:
        name: of its file.
        recording: name of the recording it was cut from.
        span: its place there, in samples at `SLICE_RATE`.
        text: from the recording's cues, None if it has to be recognised.
    """

    name: str
    recording: str
    span: Span
    text: str | None = None


@dataclass(frozen=True)
class _CutRecord:
    """The spans a recording was cut into, and a key of what they depend on."""

    key: str
    spans: tuple[tuple[int, int], ...]


def slice_recordings(
    recordings: Sequence[Path],
    folder: Path,
    settings: SliceSettings | None = None,
    *,
    cues: Mapping[Path, Sequence[Cue]] | None = None,
    changes: Mapping[str, float] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    forget: Callable[[list[str]], None] | None = None,
    notice: Notice | None = None,
) -> list[SliceFile]:
    """Cut recordings into clips; those already cut and unchanged are skipped.

    Args:
        recordings: files of any length; one of up to `LONGEST_CLIP_SECONDS` is not cut.
        folder: output folder of the clips, created if missing.
        settings: where to cut; None for those a recording was last cut with, or the defaults.
        changes: fields of `settings` to override.
        cues: by recording; such recordings are cut at their cues instead.
        progress: called with recordings done, total and the recording's name.
        forget: called with the names of earlier slices that were deleted.
        notice: called with a sentence for each recording read from a single channel.

    Returns:
        The slices in order, without silent ones.

    Raises:
        DataError: a recording cannot be read, has a rate below 16 kHz or ends before its cues, or
            two have the same name.
        UserError: ffmpeg is needed and not installed, or its temporary files do not fit on the
            disk; `folder` cannot be written; or the settings contradict each other.
    """
    names = [path.name for path in recordings]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise DataError(f"{duplicates[0]}: two recordings have this name; rename one")
    make_folder(folder)
    records = _read_records(folder)
    slices: list[SliceFile] = []
    for number, path in enumerate(recordings, 1):
        own_cues = (cues or {}).get(path, [])
        texts = {_to_samples(cue.start): cue.text for cue in own_cues}
        before = records.get(path.name, _CutRecord("", ()))
        chosen = _change(settings or _settings_of(before), changes or {})
        same = f"{_FORMAT} {file_sha256(path)} "
        key = same + json.dumps(own_cues or asdict(chosen))
        spans = [Span(*span) for span in before.spans]
        is_there = all((folder / _slice_name(path.name, span)).is_file() for span in spans)
        if before.key != key or not is_there:
            with open_stream(path) as stream:
                new = _find_spans(stream, chosen, own_cues)
                if notice and stream.channel is not None:
                    notice(f"{path}: {describe_channel(stream.channel, stream.channels)}")
                # Unchanged spans keep their files and the user's transcripts; not so with cues,
                # whose texts may have changed.
                kept = new if before.key.startswith(same) and not own_cues else []
                gone = [_slice_name(path.name, span) for span in spans if span not in kept]
                for name in gone:
                    (folder / name).unlink(missing_ok=True)
                if forget and gone:
                    forget(gone)
                spans = _write_slices(stream, folder, new)
            records[path.name] = _CutRecord(key, tuple(spans))
            _write_records(folder, records)
        slices += [
            SliceFile(_slice_name(path.name, span), path.name, span, texts.get(span.start))
            for span in spans
        ]
        if progress:
            progress(number, len(recordings), path.name)
    return slices


def is_clip(path: Path) -> bool:
    """Whether a recording is short enough to be left uncut."""
    with open_stream(path) as stream:
        frames = stream.frames
        if frames is None:
            frames = sum(len(block) for block in stream.blocks())
        return frames <= LONGEST_CLIP_SECONDS * stream.rate


def _to_samples(seconds: float) -> int:
    return round(seconds * SLICE_RATE)


def _slice_name(recording: str, span: Span) -> str:
    return f"{recording}_{span.start:010d}_{span.end:010d}.wav"


def _read_records(folder: Path) -> dict[str, _CutRecord]:
    # If it is missing or damaged, all recordings are cut again, with the same result.
    with contextlib.suppress(DataError):
        return read_json(folder / _RECORDS_FILE, dict[str, _CutRecord], error=DataError, cure="")
    return {}


def _write_records(folder: Path, records: Mapping[str, _CutRecord]) -> None:
    table = {name: asdict(one) for name, one in records.items()}
    with atomic_write(folder / _RECORDS_FILE) as file:
        file.write(json.dumps(table, indent=1).encode())


def _settings_of(record: _CutRecord) -> SliceSettings:
    """Return the settings a recording was last cut with, the defaults if unknown."""
    with contextlib.suppress(DataError):
        settings = record.key.split(" ", 2)[-1]
        return parse_json(settings, SliceSettings, _RECORDS_FILE, error=DataError, cure="")
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
    """Say that slices are too long for clips, and which options would cut them.

    Args:
        path: the recording.
        slices: the ones that are too long.
        folder: of the clips.
    """
    settings = _settings_of(_read_records(folder).get(path.name, _CutRecord("", ())))
    longest = longest_seconds(_DATA)
    seconds = [(piece.span.end - piece.span.start) / SLICE_RATE for piece in slices]
    shown = f"{max(seconds):.0f} s" if len(slices) == 1 else f"up to {max(seconds):.0f} s"
    with open_stream(path) as stream:
        levels, samples = _measure(stream, settings)
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
    """Whether a slice is too long to train on."""
    return is_too_long(piece.span.end - piece.span.start, _DATA)


class _Measured(NamedTuple):
    levels: np.ndarray
    samples: int


def _measure(stream: Stream, settings: SliceSettings) -> _Measured:
    """Measure the level of every frame of a recording."""
    samples = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in stream.speech(SLICE_RATE):
            samples += len(block)
            yield block

    levels = frame_levels(counted(), settings.window(SLICE_RATE), settings.hop(SLICE_RATE))
    if samples == 0:
        raise DataError(f"{stream.path}: holds no sound; take it out")
    return _Measured(levels, samples)


def _find_spans(stream: Stream, settings: SliceSettings, cues: Sequence[Cue]) -> list[Span]:
    """Find the slices of one recording, silent ones included."""
    levels, samples = _measure(stream, settings)
    if cues:
        return _cue_spans(stream.path, cues, samples)
    if samples <= LONGEST_CLIP_SECONDS * SLICE_RATE:
        return [Span(0, samples)]
    return find_slices(levels, samples, SLICE_RATE, settings)


def _cue_spans(path: Path, cues: Sequence[Cue], samples: int) -> list[Span]:
    if _to_samples(cues[-1].start) >= samples:
        raise DataError(
            f"{path}: ends at {samples / SLICE_RATE:.1f} s, but its subtitles go on at "
            f"{cues[-1].start:.1f} s; give those of this recording"
        )
    return [Span(_to_samples(cue.start), min(_to_samples(cue.end), samples)) for cue in cues]


def _write_slices(stream: Stream, folder: Path, spans: list[Span]) -> list[Span]:
    """Write the slices of one recording; return those that are not silent."""
    written = []
    for span, wav in _extract(stream.speech(SLICE_RATE), spans):
        levelled = _level(wav)
        if levelled is not None:
            name = _slice_name(stream.path.name, span)
            write_wav(folder / name, levelled, SLICE_RATE)
            written.append(span)
    return written


class _Slice(NamedTuple):
    span: Span
    wav: np.ndarray


def _extract(blocks: Iterable[np.ndarray], spans: Sequence[Span]) -> Iterator[_Slice]:
    """Yield the samples of each span, in order, from a stream of blocks."""
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
    """Mix 1/4 of the slice at peak 0.9 with 3/4 of it unchanged, as int16; None for silence."""
    peak = float(np.abs(wav).max(initial=0.0))
    if peak == 0:
        return None
    if peak > 1:
        wav = wav / peak
    # As upstream, which divides twice by a peak above 1.
    mixed = wav / peak * (_PEAK * _MIX) + (1 - _MIX) * wav
    return (mixed * 32767).astype(np.int16)
