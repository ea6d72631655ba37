"""Cases for recordings: headers that lie, damaged and cut files of every common container."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile

from mlx_vits.audio.files import read_audio, read_seconds
from mlx_vits.audio.streams import stream_recording
from mlx_vits.errors import UserError
from tests.support.fuzzing import Fault, Kind, check_sentence

FORMS = {
    "wav": [("WAV", "PCM_16"), ("WAVEX", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "GSM610")],
    "wav, compressed": [("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "G721_32")],
    "flac": [("FLAC", "PCM_16"), ("FLAC", "PCM_24")],
    "ogg": [("OGG", "VORBIS"), ("OGG", "OPUS")],
    "mp3": [("MP3", "MPEG_LAYER_III")],
    "aiff": [("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("AIFF", "DWVW_16")],
    "caf": [("CAF", "PCM_16"), ("CAF", "ALAC_16")],
    "w64": [("W64", "PCM_16"), ("RF64", "PCM_16")],
    "au": [("AU", "PCM_16"), ("AU", "G723_24")],
}
_RATE = 24000
_NUMBERS = (0, 1, 2, 255, 1000, 65535, 655_350, 10**9, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_LONG_NUMBERS = (0, 1, 2**36 - 1, 2**36, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_ODD_SAMPLES = (np.nan, np.inf, 1e30, -3e38, 1e13)


@cache
def recording(container: str, encoding: str, channels: int) -> bytes:
    """A quarter of a second, whole."""
    if encoding not in soundfile.available_subtypes(container):
        container, encoding = "WAV", "PCM_16"  # an older libsndfile
    if encoding in ("GSM610", "G721_32", "G723_24", "DWVW_16"):
        channels = 1
    times = np.arange(_RATE // 4) / _RATE
    wav = np.stack([0.3 * np.sin(2 * np.pi * 220 * (c + 1) * times) for c in range(channels)], 1)
    file = io.BytesIO()
    soundfile.write(file, wav, _RATE, format=container, subtype=encoding)
    return file.getvalue()


def damage(data: bytes, draw: np.random.Generator) -> bytes:
    """Changes a few bytes, most often where a header says how much of what there is."""
    content = bytearray(data)
    head = int(draw.choice([48, 100, 400, 4000]))

    def place(width: int) -> int:
        return int(draw.integers(0, max(1, min(head, len(content)) - width)))

    def put(numbers: tuple[int, ...], width: int) -> None:
        at, number = place(width) & ~1, numbers[int(draw.integers(len(numbers)))]
        order: Any = draw.choice(["little", "big"])
        content[at : at + width] = (number % 256**width).to_bytes(width, order)

    def flip() -> None:
        for _ in range(int(draw.integers(1, 9))):
            content[place(1)] ^= 1 << int(draw.integers(8))

    def put_sample() -> None:
        at = int(draw.integers(len(content) // 2, len(content) - 4)) & ~3
        content[at : at + 4] = np.float32(draw.choice(_ODD_SAMPLES)).tobytes()

    def cut() -> None:
        del content[int(draw.integers(len(content))) :]

    def insert() -> None:
        at = place(1)
        content[at:at] = draw.bytes(int(draw.choice([1, 2, 4, 100])))

    def repeat() -> None:
        at = place(200)
        content[at:at] = content[at : at + 200] * int(draw.integers(1, 20))

    ways: tuple[Callable[[], None], ...] = (
        lambda: put(_NUMBERS, 4),
        lambda: put(_NUMBERS, 2),
        lambda: put(_LONG_NUMBERS, 8),
        *(flip, put_sample, cut, insert, repeat),
    )
    for _ in range(int(draw.integers(1, 4))):
        if len(content) > 16:
            ways[int(draw.integers(len(ways)))]()
    return bytes(content)


def _read_every_way(path: Path) -> Any:
    """The samples of a recording; None where any of the readers refuses it."""

    def stream(path: Path) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *stream_recording(path, 32000)])

    found: Any = path
    with mock.patch.object(shutil, "which", return_value=None):  # no ffmpeg
        for read in (read_seconds, lambda path: read_audio(path).wav, stream):
            try:
                values = read(path)
            except UserError as error:
                check_sentence(path, str(error))
                found = None
            else:
                if not np.isfinite(values).all():
                    raise Fault("it reads values that are not numbers")
    return found


def _kind(forms: list[tuple[str, str]]) -> Kind:
    def make(path: Path, draw: np.random.Generator) -> Callable[[Path], Any]:
        container, encoding = forms[int(draw.integers(len(forms)))]
        path.write_bytes(damage(recording(container, encoding, int(draw.integers(1, 3))), draw))
        return _read_every_way

    return make


AUDIO_KINDS: dict[str, Kind] = {name: _kind(forms) for name, forms in FORMS.items()}
