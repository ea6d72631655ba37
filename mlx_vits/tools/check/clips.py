"""Clips, read one after the other: nothing of one is kept but its facts.

Axes: N samples, S SSL frames, T spectrogram frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_vits.audio.files import Recording, read_audio, to_speech
from mlx_vits.audio.formats import open_recording
from mlx_vits.config import DataSection
from mlx_vits.errors import DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.language_check import check_language
from mlx_vits.preprocessing.prepared import TextLine
from mlx_vits.preprocessing.quality import judge_clip
from mlx_vits.preprocessing.sources import Clip
from mlx_vits.text.cleaner import UNKNOWN
from mlx_vits.text.symbols import symbols_for
from mlx_vits.tools.check.facts import ClipFacts, FeatureFacts, LeftOut
from mlx_vits.tools.check.phonemes import ENGLISH, guessed_words, is_english
from mlx_vits.tools.check.sound import measure_sound
from mlx_vits.tools.check.subject import Subject

DATA = DataSection()  # every version's: 32 kHz, 640 samples a frame
_SAMPLE_BYTES = 2
_FRAME_BYTES = _SAMPLE_BYTES * DATA.hop_length
_NEWEST = "v2"  # its symbols are those of every later version, and hold v1's


class Reading(NamedTuple):
    """A clip's facts, and what is counted over all clips.

    Attributes:
        symbols: its phonemes.
        file_form: in words, where a prepared recording is in another form than it has to be.
    """

    clip: ClipFacts
    symbols: list[str]
    file_form: str = ""


def count_clips(subject: Subject) -> int:
    """Return how many `read_clips` will read."""
    if subject.source is not None:
        return len(subject.source.clips)
    return sum(len(lines) for _, lines in _parts(subject.folder))


def read_clips(subject: Subject) -> Iterator[Reading]:
    """Read every clip, those to train on first.

    Raises:
        DataError: the texts cannot be read. What is wrong with a single clip is among its facts.
    """
    if subject.source is not None:
        for source in subject.source.training:
            yield _read_source(source, False, subject.language or ENGLISH)
        for source in subject.source.held_out:
            yield _read_source(source, True, subject.language or ENGLISH)
        return
    manifest = subject.manifest
    languages = {source.name: source.language for source in manifest.sources} if manifest else {}
    version = manifest.version if manifest is not None else _NEWEST
    for part, lines in _parts(subject.folder):
        for line in lines:
            stated = subject.language or languages.get(line.name)
            language = stated or (ENGLISH if is_english(line.phonemes) else "")
            clip = ClipFacts(line.name, part != subject.folder, line.text, language)
            yield _read_prepared(clip, part, line, version)


def _parts(folder: Path) -> list[tuple[Path, list[TextLine]]]:
    """Both parts of a prepared folder; lines that cannot be used are reported by `gather`."""
    return [
        (part, layout.read_text_lines(part / layout.TEXT_FILE, lambda fault: None))
        for part in (folder, folder / layout.HELD_OUT_FOLDER)
        if layout.is_prepared(part)
    ]


def _read_source(source: Clip, held_out: bool, language: str) -> Reading:
    """A clip that is still to be prepared; what preparing would refuse leaves it out."""
    clip = ClipFacts(source.name, held_out, source.text, source.language or language)
    symbols: list[str] = []
    try:
        recording = read_audio(source.path)
        wav = to_speech(recording, source.path, DATA.sampling_rate)
        _hear(clip, recording)
        clip.seconds = len(wav) / DATA.sampling_rate
        clip.sampler_frames = (len(wav) * _SAMPLE_BYTES + layout.WAV_HEADER_BYTES) // _FRAME_BYTES
        symbols = _read_text(clip, source.path)
        fault = judge_clip(wav, DATA)
        if fault is not None:
            raise DataError(f"{source.path}: {fault}")
    except DataError as error:
        clip.left_out = LeftOut(clip.name, "cannot be prepared", str(error))
    return Reading(clip, symbols)


def _read_text(clip: ClipFacts, path: Path) -> list[str]:
    try:
        check_language(clip.text, clip.language)
        cleaned = layout.clean_clip_text(clip.text, clip.language)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    clip.unspoken = cleaned.unknown
    _count_phonemes(clip, cleaned.phonemes)
    return cleaned.phonemes


def _hear(clip: ClipFacts, recording: Recording) -> None:
    """Measure a recording at its own rate."""
    clip.sound = measure_sound(*recording)
    clip.digest = hashlib.sha256(recording.wav.tobytes()).hexdigest()


def _count_phonemes(clip: ClipFacts, symbols: list[str]) -> None:
    clip.phonemes, clip.unknown = len(symbols), symbols.count(UNKNOWN)
    clip.guessed = guessed_words(clip.text) if clip.language == ENGLISH else ()


def _read_prepared(clip: ClipFacts, part: Path, line: TextLine, version: str) -> Reading:
    """A clip of a prepared folder, by the rules of GPT-SoVITS's loader."""
    wav, ssl, vector = layout.clip_files(part, clip.name)
    _count_phonemes(clip, line.phonemes)
    if not wav.is_file() or not ssl.is_file():
        missing, path = ("features", ssl) if wav.is_file() else ("recording", wav)
        _leave_out(clip, f"no {missing}", f"{path}: is missing")
        return Reading(clip, line.phonemes)
    strange = sorted(set(line.phonemes) - set(symbols_for(version)))
    if strange:
        words = f"{clip.name}: has {strange[0]!r}, which is no phoneme of {version}"
        _leave_out(clip, "unknown phoneme", words)
    clip.sampler_frames = wav.stat().st_size // _FRAME_BYTES
    if not clip.held_out:
        _check_length(clip)
    try:
        recording, file_form = read_audio(wav), _file_form(wav)
    except DataError as error:
        clip.faults += (str(error),)
        return Reading(clip, line.phonemes)
    _hear(clip, recording)
    clip.seconds = len(recording.wav) / recording.rate
    _check_features(clip, wav, recording, ssl)
    if vector.is_file():
        try:
            clip.vector_width = len(layout.read_speaker_vector(vector))
        except DataError as error:  # no fault of the clip's for versions that take no vector
            clip.vector_fault = str(error)
    return Reading(clip, line.phonemes, file_form)


def _leave_out(clip: ClipFacts, rule: str, words: str) -> None:
    """The loader leaves out what is trained on; what is listened to has to be whole."""
    if clip.held_out:
        clip.faults += (words,)
    else:
        clip.left_out = LeftOut(clip.name, rule, words)


def _check_length(clip: ClipFacts) -> None:
    if not layout.SHORTEST_FRAMES <= clip.sampler_frames <= layout.LONGEST_FRAMES:
        seconds, shortest, longest = (
            frames * DATA.hop_length / DATA.sampling_rate
            for frames in (clip.sampler_frames, layout.SHORTEST_FRAMES, layout.LONGEST_FRAMES)
        )
        words = f"is {seconds:.2f} s long; {shortest:.2f} to {longest:.0f} s are taken"
        _leave_out(clip, "too short or too long", f"{clip.name}: {words}")


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


def _check_features(clip: ClipFacts, wav: Path, recording: Recording, path: Path) -> None:
    spec_frames = len(recording.wav) // DATA.hop_length
    is_right_rate = recording.rate == DATA.sampling_rate
    if not is_right_rate:
        clip.faults += (f"{wav}: is at {recording.rate} Hz instead of {DATA.sampling_rate}",)
    try:
        tensor = layout.read_feature_tensor(path)
    except DataError as error:
        clip.faults += (str(error),)
        return
    _, width, frames = tensor.shape
    found = FeatureFacts(width, frames, spec_frames, bool(np.isfinite(tensor).all()))
    clip.features = found
    if is_right_rate and not found.is_aligned:
        words = f"has {frames} frames where the recording has {spec_frames}"
        clip.faults += (f"{path}: {words}",)
    if is_right_rate and not found.is_finite:
        clip.faults += (f"{path}: holds values that are not numbers",)
