"""Long recordings to a folder of clips, cut at their silences or by their subtitles.

Each recording passes by in blocks, so that memory does not grow with its length. Slices are
levelled as GPT-SoVITS's slicer does, and named `RECORDING_START_END.wav`, in samples.

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
LONGEST_CLIP_SECONDS = 15.0  # a shorter recording is taken for a clip, and kept in one piece
_MADE = "slices.json"
_PEAK, _MIX = 0.9, 0.25  # upstream's slicer: a quarter at a common peak, the rest as it was
_FORMAT = 1
_DATA = DataSection()  # every version's

Notice = Callable[[str], None]


class SliceFile(NamedTuple):
    """A slice that was written.

    Attributes:
        name: of its file.
        recording: that it was cut from.
        span: where, in samples at `SLICE_RATE`.
        text: what is said, None where only listening tells.
    """

    name: str
    recording: str
    span: Span
    text: str | None = None


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
    cues: Mapping[Path, Sequence[Cue]] | None = None,
    changes: Mapping[str, float] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    forget: Callable[[list[str]], None] | None = None,
    notice: Notice | None = None,
) -> list[SliceFile]:
    """Cuts recordings into clips; one that was cut before and has not changed is left alone.

    Args:
        recordings: files of any length; one of up to `LONGEST_CLIP_SECONDS` stays in one piece.
        folder: of the clips, made if it is missing.
        settings: where to cut; None for how a recording was cut before, or else the defaults.
        changes: fields of `settings` that are to be different.
        cues: of recordings that are cut by these instead.
        progress: called with recordings done, recordings in all and the recording's name.
        forget: called with the names of earlier slices that are no longer there.
        notice: called with a sentence on each recording of which one channel alone is read.

    Returns:
        The slices, in order. A silent one is not written.

    Raises:
        DataError: a recording cannot be read, was made below 16 kHz or ends before its cues, or two
            have one name.
        UserError: one needs ffmpeg, which is not installed, or more space for temporary files than
            there is; `folder` cannot be written; or the settings do not fit each other.
    """
    names = [path.name for path in recordings]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise DataError(f"{twins[0]}: two recordings have this name; rename one")
    make_folder(folder)
    made = _read_made(folder)
    slices: list[SliceFile] = []
    for number, path in enumerate(recordings, 1):
        own = (cues or {}).get(path, [])
        texts = {_at(cue.start): cue.text for cue in own}
        before = made.get(path.name, _Made("", ()))
        chosen = _change(settings or _settings_of(before), changes or {})
        same = f"{_FORMAT} {file_sha256(path)} "
        key = same + json.dumps(own or asdict(chosen))
        spans = [Span(*span) for span in before.spans]
        is_there = all((folder / _slice_name(path.name, span)).is_file() for span in spans)
        if before.key != key or not is_there:
            with open_stream(path) as stream:
                new = _find_spans(stream, chosen, own)
                if notice and stream.channel is not None:
                    notice(f"{path}: {describe_channel(stream.channel, stream.channels)}")
                # Slices of the same samples stay, with what the user has made of their transcripts;
                # of changed subtitles, the texts may be others.
                kept = new if before.key.startswith(same) and not own else []
                gone = [_slice_name(path.name, span) for span in spans if span not in kept]
                for name in gone:
                    (folder / name).unlink(missing_ok=True)
                if forget and gone:
                    forget(gone)
                spans = _write_slices(stream, folder, new)
            made[path.name] = _Made(key, tuple(spans))
            _write_made(folder, made)
        slices += [
            SliceFile(_slice_name(path.name, span), path.name, span, texts.get(span.start))
            for span in spans
        ]
        if progress:
            progress(number, len(recordings), path.name)
    return slices


def is_clip(path: Path) -> bool:
    """Whether a recording is short enough to stay in one piece."""
    with open_stream(path) as stream:
        frames = stream.frames
        if frames is None:
            frames = sum(len(block) for block in stream.blocks())
        return frames <= LONGEST_CLIP_SECONDS * stream.rate


def _at(seconds: float) -> int:
    return round(seconds * SLICE_RATE)


def _slice_name(recording: str, span: Span) -> str:
    return f"{recording}_{span.start:010d}_{span.end:010d}.wav"


def _read_made(folder: Path) -> dict[str, _Made]:
    # Where it is missing or damaged, all recordings are cut again, which gives the same slices.
    with contextlib.suppress(DataError):
        return read_json(folder / _MADE, dict[str, _Made], error=DataError, cure="")
    return {}


def _write_made(folder: Path, made: Mapping[str, _Made]) -> None:
    table = {name: asdict(one) for name, one in made.items()}
    with atomic_write(folder / _MADE) as file:
        file.write(json.dumps(table, indent=1).encode())


def _settings_of(made: _Made) -> SliceSettings:
    """What a recording was cut with before, the defaults where that is not known."""
    with contextlib.suppress(DataError):
        settings = made.key.split(" ", 2)[-1]
        return parse_json(settings, SliceSettings, _MADE, error=DataError, cure="")
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
    settings = _settings_of(_read_made(folder).get(path.name, _Made("", ())))
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
    """Whether a slice cannot be a clip to train on."""
    return is_too_long(piece.span.end - piece.span.start, _DATA)


class _Measured(NamedTuple):
    levels: np.ndarray
    samples: int


def _measure(stream: Stream, settings: SliceSettings) -> _Measured:
    """The level of every frame of a recording."""
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
    """Where the slices of one recording lie, silent ones among them."""
    levels, samples = _measure(stream, settings)
    if cues:
        return _spans_of(stream.path, cues, samples)
    if samples <= LONGEST_CLIP_SECONDS * SLICE_RATE:
        return [Span(0, samples)]
    return find_slices(levels, samples, SLICE_RATE, settings)


def _spans_of(path: Path, cues: Sequence[Cue], samples: int) -> list[Span]:
    if _at(cues[-1].start) >= samples:
        raise DataError(
            f"{path}: ends at {samples / SLICE_RATE:.1f} s, but its subtitles go on at "
            f"{cues[-1].start:.1f} s; give those of this recording"
        )
    return [Span(_at(cue.start), min(_at(cue.end), samples)) for cue in cues]


def _write_slices(stream: Stream, folder: Path, spans: list[Span]) -> list[Span]:
    """Writes the slices of one recording; those that are not silent."""
    written = []
    for span, wav in _take(stream.speech(SLICE_RATE), spans):
        levelled = _level(wav)
        if levelled is not None:
            name = _slice_name(stream.path.name, span)
            write_wav(folder / name, levelled, SLICE_RATE)
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
