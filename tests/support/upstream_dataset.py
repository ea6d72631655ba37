"""What GPT-SoVITS's own loader takes of a prepared folder, written down a second time.

The rules of its loader and sampler, name by name, with the reason wherever an item would be left
out or, worse, replaced by zeros. It shares nothing with the product: the files are opened with
the standard library and numpy alone.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

SYMBOLS = Path(__file__).resolve().parents[3] / "shared" / "spec" / "data"
SYMBOL_COUNTS = {"symbols_v1.json": 322, "symbols_v2.json": 732}
RATE = 32000
FRAME = 640  # samples
HEADER = 44  # bytes
SHORTEST_SECONDS, LONGEST_SECONDS = 0.6, 54.0  # both excluded, header counted
SHORTEST_FRAMES, LONGEST_FRAMES = 32, 1900  # the sampler's buckets: (32, 1900]
ENOUGH_NAMES = 100  # below, the list of names is repeated
STORAGES = {"HalfStorage": np.float16, "FloatStorage": np.float32}


class Verdict(NamedTuple):
    kept: list[str]
    dropped: dict[str, str]  # name: why upstream would not train on it as it is
    refused: str  # why upstream would not start at all, "" if it would
    entries: int  # how many items its data set counts, repetitions included


class _TensorPickle(pickle.Unpickler):
    """Opens `torch.save` of one plain tensor, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a plain tensor")

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, count = pid
        stored = np.frombuffer(self.archive.read(f"{self.folder}/data/{key}"), dtype)
        assert len(stored) == count, f"{len(stored)} numbers stored, {count} announced"
        return stored


def rebuild(
    storage: np.ndarray, offset: int, shape: Any, strides: Any, gradient: bool, _hooks: Any
) -> np.ndarray:
    assert not gradient
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def read_tensor(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        assert len(names) == 1, names
        loaded = _TensorPickle(archive, names[0].removesuffix("/data.pkl")).load()
    assert isinstance(loaded, np.ndarray), type(loaded)
    return loaded


def read_wav(path: Path) -> np.ndarray:
    """The int16 samples of a wav whose header is the plain one of 44 bytes; else says what is."""
    data = path.read_bytes()
    assert len(data) >= HEADER, "the file is shorter than its header"
    riff, size, wave, fmt, fmt_size = struct.unpack("<4sI4s4sI", data[:20])
    assert (riff, wave, fmt, fmt_size) == (b"RIFF", b"WAVE", b"fmt ", 16), data[:20]
    assert size == len(data) - 8, f"RIFF says {size}, {len(data) - 8} are there"
    assert struct.unpack("<HHIIHH", data[20:36]) == (1, 1, RATE, 2 * RATE, 2, 16), data[20:36]
    assert data[36:40] == b"data", data[36:40]
    (payload,) = struct.unpack("<I", data[40:44])
    assert payload == len(data) - HEADER, f"data says {payload}, {len(data) - HEADER} are there"
    assert payload % 2 == 0, "half a sample at the end"
    return np.frombuffer(data[HEADER:], "<i2")


def hubert_frames(samples_32k: int) -> int:
    """Frames of the content encoder for so many samples at 32 kHz."""
    length = -(-samples_32k // 2)
    for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
        length = (length - kernel) // stride + 1
    return length


def read_rows(folder: Path) -> dict[str, list[str]]:
    """2-name2text.txt: NAME: the other three columns. Rows of another width do not count."""
    lines = (folder / "2-name2text.txt").read_text("utf-8").strip("\n").split("\n")
    cells = [line.split("\t") for line in lines]
    return {row[0]: row[1:] for row in cells if len(row) == 4}


def names_in(folder: Path, ending: str) -> set[str]:
    """Upstream takes every file there is, and cuts three characters where `.pt` should be."""
    return {path.name[: len(path.name) - len(ending)] for path in folder.iterdir()}


def symbols(version: str) -> set[str]:
    name = "symbols_v1.json" if version == "v1" else "symbols_v2.json"
    if not (SYMBOLS / name).exists():
        pytest.skip(f"{name} is not here: ../shared is absent")
    listed = json.loads((SYMBOLS / name).read_text("utf-8"))
    assert len(set(listed)) == SYMBOL_COUNTS[name]
    return set(listed)


def judge_text(row: list[str], known: set[str]) -> str:
    phonemes, word2ph, text = row
    unknown = [phoneme for phoneme in phonemes.split(" ") if phoneme not in known]
    if unknown:
        return f"no symbols: {unknown[:5]}"
    counts = ast.literal_eval(word2ph)
    if counts is not None and sum(counts) != len(phonemes.split(" ")):
        return f"word2ph counts {sum(counts)} phonemes of {len(phonemes.split(' '))}"
    return "" if text.strip() else "no text"


def judge_length(path: Path) -> str:
    size = path.stat().st_size
    seconds = size / RATE / 2
    if not SHORTEST_SECONDS < seconds < LONGEST_SECONDS:
        return f"{seconds:.2f} s"
    if not SHORTEST_FRAMES < size // (2 * FRAME) <= LONGEST_FRAMES:
        return f"{size // (2 * FRAME)} frames: in no bucket"
    return ""


def judge_tensor(array: np.ndarray, shape: tuple[int, ...]) -> str:
    if array.dtype not in (np.float16, np.float32):
        return f"numbers of type {array.dtype}"
    if array.shape != shape:
        return f"shape {array.shape}, expected {shape}"
    return "" if np.isfinite(array.astype(np.float32)).all() else "numbers that are not finite"


def judge_arrays(folder: Path, name: str, channels: int, speaker: int | None) -> str:
    """The item itself; upstream puts zeros in the place of one it cannot read."""
    samples = read_wav(folder / "5-wav32k" / name)
    if not samples.any():
        return "digital silence"
    frames = hubert_frames(len(samples))
    if len(samples) // FRAME - frames not in (0, 1):
        return f"{len(samples) // FRAME} spectrogram frames against {frames}"
    features = read_tensor(folder / "4-cnhubert" / f"{name}.pt")
    fault = judge_tensor(features, (1, channels, frames))
    if not fault and speaker is not None:
        fault = judge_tensor(read_tensor(folder / "7-sv_cn" / f"{name}.pt"), (1, speaker))
    return fault


def judge(folder: Path, version: str, channels: int = 768, speaker: int = 20480) -> Verdict:
    """Upstream's verdict on a prepared folder; reduced models have other channels."""
    rows, known = read_rows(folder), symbols(version)
    places = {
        "2-name2text.txt": set(rows),
        "4-cnhubert": names_in(folder / "4-cnhubert", ".pt"),
        "5-wav32k": names_in(folder / "5-wav32k", ""),
    }
    if "Pro" in version:
        places["7-sv_cn"] = names_in(folder / "7-sv_cn", ".pt")
    everywhere = set.intersection(*places.values())
    dropped = {}
    for name in sorted(set.union(*places.values())):
        missing = [place for place, names in places.items() if name not in names]
        reason = f"not in {', '.join(missing)}" if missing else judge_text(rows[name], known)
        reason = reason or judge_length(folder / "5-wav32k" / name)
        reason = reason or judge_arrays(
            folder, name, channels, speaker if "Pro" in version else None
        )
        if reason:
            dropped[name] = reason
    kept = sorted(everywhere - set(dropped))
    repeats = 1
    if 0 < len(everywhere) < ENOUGH_NAMES:
        repeats = max(2, ENOUGH_NAMES // len(everywhere))
    entries = repeats * len(kept)
    refused = "" if entries >= 2 else f"{entries} items left, upstream needs 2"
    return Verdict(kept, dropped, refused, entries)
