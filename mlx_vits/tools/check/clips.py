"""Clips, read one after the other: nothing of one is kept but its facts.

Axes: N samples, S SSL frames, T spectrogram frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_vits.audio.files import Recording, read_audio, to_speech
from mlx_vits.audio.formats import open_recording
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.config import DataSection
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.language_check import check_language
from mlx_vits.preprocessing.prepared import TextLine
from mlx_vits.preprocessing.quality import judge_clip
from mlx_vits.preprocessing.sources import Clip
from mlx_vits.text.cleaner import UNKNOWN
from mlx_vits.text.symbols import symbols_for
from mlx_vits.tools.check.facts import ClipFacts, FeatureFacts, LeftOut
from mlx_vits.tools.check.phonemes import ENGLISH, guessed_words, is_english
from mlx_vits.tools.check.sound import SoundFacts, measure_sound
from mlx_vits.tools.check.subject import Subject

DATA = DataSection()  # every version's: 32 kHz, 640 samples a frame
_SAMPLE_BYTES = 2
_NEWEST = "v2"  # its symbols are those of every later version, and hold v1's


class Reading(NamedTuple):
    """A clip's facts, and what is counted over all clips.

    Attributes:
        clip: its facts.
        symbols: its phonemes.
        file_form: in words where the recording is not as a prepared one has to be, or "".
    """

    clip: ClipFacts
    symbols: list[str]
    file_form: str = ""


def count_clips(subject: Subject) -> int:
    """How many `read_clips` will read."""
    if subject.source is not None:
        return len(subject.source.clips)
    return sum(len(lines) for _, lines in _parts(subject.folder))


def read_clips(subject: Subject) -> Iterator[Reading]:
    """Reads every clip, those to train on first.

    Raises:
        DataError: the texts cannot be read. What is wrong with a single clip is among its facts.
    """
    if subject.source is not None:
        for clip in subject.source.training:
            yield _read_source(clip, False, subject.language or ENGLISH)
        for clip in subject.source.held_out:
            yield _read_source(clip, True, subject.language or ENGLISH)
        return
    manifest = subject.manifest
    languages = {clip.name: clip.language for clip in manifest.sources} if manifest else {}
    version = manifest.version if manifest is not None else _NEWEST
    for part, lines in _parts(subject.folder):
        for line in lines:
            stated = subject.language or languages.get(line.name)
            language = stated or (ENGLISH if is_english(line.phonemes) else "")
            yield _read_prepared(part, line, part != subject.folder, language, version)


def _parts(folder: Path) -> list[tuple[Path, list[TextLine]]]:
    parts = [folder, folder / layout.HELD_OUT_FOLDER]
    return [
        (part, layout.read_text_lines(part / layout.TEXT_FILE, _ignore))
        for part in parts
        if layout.is_prepared(part)
    ]


def _ignore(reason: str) -> None:
    """Of a line that is told of among what is left out."""


class _Heard(NamedTuple):
    sound: SoundFacts
    samples: int
    digest: str


def _hear(recording: Recording) -> _Heard:
    """Measures a recording at its own rate."""
    return _Heard(
        measure_sound(*recording),
        len(recording.wav),
        hashlib.sha256(recording.wav.tobytes()).hexdigest(),
    )


def _file_form(path: Path) -> str:
    """In words where a recording is not as a prepared one has to be, or "".

    Raises:
        DataError: it cannot be read.
    """
    odd = []
    with open_recording(path) as header:
        bare = path.stat().st_size - _SAMPLE_BYTES * header.frames * header.channels
        if header.samplerate != DATA.sampling_rate:
            odd.append(f"{header.samplerate} Hz")
        if header.channels != 1:
            odd.append(f"{header.channels} channels")
        if header.subtype != "PCM_16" or not header.format.startswith("WAV"):
            odd.append("not 16-bit WAV")
        elif bare != layout.WAV_HEADER_BYTES:
            odd.append(f"a header of {bare} bytes")
    return ", ".join(odd)


def _read_source(clip: Clip, held_out: bool, language: str) -> Reading:
    """A clip that is still to be prepared; what preparing would refuse leaves it out."""
    facts = ClipFacts(clip.name, held_out, clip.text, clip.language or language)
    symbols: list[str] = []
    try:
        recording = read_audio(clip.path)
        wav = to_speech(recording, clip.path, DATA.sampling_rate)
    except DataError as error:
        return Reading(replace(facts, left_out=_refused(clip, str(error))), symbols)
    heard, samples = _hear(recording), len(wav)
    facts = replace(
        facts,
        seconds=samples / DATA.sampling_rate,
        sampler_frames=(samples * _SAMPLE_BYTES + layout.WAV_HEADER_BYTES)
        // (_SAMPLE_BYTES * DATA.hop_length),
        sound=heard.sound,
        digest=heard.digest,
    )
    try:
        check_language(clip.text, facts.language)
        cleaned = layout.clean_clip_text(clip.text, facts.language)
    except DataError as error:
        left_out = _refused(clip, f"{clip.path}: {error}")
        return Reading(replace(facts, left_out=left_out), symbols)
    symbols = cleaned.phonemes
    facts = replace(_with_phonemes(facts, symbols), unspoken=cleaned.unknown)
    fault = judge_clip(wav, DATA)
    if fault is not None:
        facts = replace(facts, left_out=_refused(clip, f"{clip.path}: {fault}"))
    return Reading(facts, symbols)


def _refused(clip: Clip, words: str) -> LeftOut:
    return LeftOut(clip.name, "cannot be prepared", words)


def _with_phonemes(facts: ClipFacts, symbols: list[str]) -> ClipFacts:
    return replace(
        facts,
        phonemes=len(symbols),
        unknown=symbols.count(UNKNOWN),
        guessed=guessed_words(facts.text) if facts.language == ENGLISH else (),
    )


def _read_prepared(
    part: Path, line: TextLine, held_out: bool, language: str, version: str
) -> Reading:
    """A clip of a prepared folder, by the rules of GPT-SoVITS's loader."""
    wav, ssl, vector = layout.clip_files(part, line.name)
    facts = ClipFacts(line.name, held_out, line.text, language)
    facts = _with_phonemes(facts, line.phonemes)
    if not wav.is_file() or not ssl.is_file():
        missing = "features" if wav.is_file() else "recording"
        path = ssl if wav.is_file() else wav
        reason = LeftOut(line.name, f"no {missing}", f"{path}: is missing")
        return Reading(_without(facts, reason), line.phonemes)
    strange = sorted(set(line.phonemes) - set(symbols_for(version)))
    if strange:
        words = f"{line.name}: has {strange[0]!r}, which is no phoneme of {version}"
        facts = _without(facts, LeftOut(line.name, "unknown phoneme", words))
    frames = wav.stat().st_size // (_SAMPLE_BYTES * DATA.hop_length)
    facts = replace(facts, sampler_frames=frames)
    if not held_out and not layout.SHORTEST_FRAMES <= frames <= layout.LONGEST_FRAMES:
        facts = replace(facts, left_out=_odd_length(line.name, frames))
    try:
        heard, file_form = _hear(read_audio(wav)), _file_form(wav)
    except DataError as error:
        return Reading(replace(facts, faults=(*facts.faults, str(error))), line.phonemes)
    faults, features = list(facts.faults), None
    is_right_rate = heard.sound.rate == DATA.sampling_rate
    if not is_right_rate:
        faults.append(f"{wav}: is at {heard.sound.rate} Hz instead of {DATA.sampling_rate}")
    try:
        features = _read_features(ssl, heard.samples // DATA.hop_length)
        faults += _feature_faults(ssl, features) if is_right_rate else []
    except DataError as error:
        faults.append(str(error))
    facts = replace(
        facts,
        seconds=heard.samples / heard.sound.rate,
        sound=heard.sound,
        features=features,
        digest=heard.digest,
        faults=tuple(faults),
    )
    return Reading(_with_vector(facts, vector), line.phonemes, file_form)


def _without(facts: ClipFacts, reason: LeftOut) -> ClipFacts:
    """The loader leaves out what is trained on; what is listened to has to be whole."""
    if facts.held_out:
        return replace(facts, faults=(*facts.faults, reason.words))
    return replace(facts, left_out=reason)


def _odd_length(name: str, frames: int) -> LeftOut:
    seconds, shortest, longest = (
        n * DATA.hop_length / DATA.sampling_rate
        for n in (frames, layout.SHORTEST_FRAMES, layout.LONGEST_FRAMES)
    )
    words = f"{name}: is {seconds:.2f} s long; {shortest:.2f} to {longest:.0f} s are taken"
    return LeftOut(name, "too short or too long", words)


def _read_features(path: Path, spec_frames: int) -> FeatureFacts:
    try:
        tensor = read_torch_archive(path)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if not isinstance(tensor, np.ndarray) or tensor.ndim != 3 or tensor.shape[0] != 1:
        raise DataError(f"{path}: does not hold features [1, channels, frames]")
    _, width, frames = tensor.shape
    return FeatureFacts(width, frames, spec_frames, bool(np.isfinite(tensor).all()))


def _feature_faults(path: Path, features: FeatureFacts) -> list[str]:
    faults = []
    if not features.is_aligned:
        faults.append(
            f"{path}: has {features.frames} frames where the recording has {features.spec_frames}"
        )
    if not features.is_finite:
        faults.append(f"{path}: holds values that are no numbers")
    return faults


def read_vector(path: Path) -> np.ndarray:
    """The speaker vector of a clip, `(V,)` float32.

    Raises:
        DataError: the file is damaged or holds something else.
    """
    try:
        tensor = read_torch_archive(path)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if not isinstance(tensor, np.ndarray) or tensor.ndim != 2 or tensor.shape[0] != 1:
        raise DataError(f"{path}: does not hold a speaker vector [1, values]")
    vector = tensor[0].astype(np.float32)
    if not np.isfinite(vector).all():
        raise DataError(f"{path}: holds values that are no numbers")
    return vector


def _with_vector(facts: ClipFacts, path: Path) -> ClipFacts:
    """What is wrong with a vector is no fault of the clip for versions that take none."""
    if not path.is_file():
        return facts
    try:
        return replace(facts, vector_width=len(read_vector(path)))
    except DataError as error:
        return replace(facts, vector_fault=str(error))
