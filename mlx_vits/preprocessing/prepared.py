"""The prepared folder, in upstream's names and formats: both projects can train on it.

Source: GPT-SoVITS `prepare_datasets/`, `module/data_utils.py`.

| path | contents |
| --- | --- |
| `2-name2text.txt` | NAME, phonemes, word2ph, normalised text; tab-separated |
| `3-bert/NAME.pt` | BERT features [1024, n], a PyTorch tensor; of Chinese, for the GPT alone |
| `4-cnhubert/NAME.pt` | SSL features [1, C, S], a PyTorch tensor, fp32 |
| `5-wav32k/NAME` | 32 kHz mono 16-bit WAV, levelled |
| `6-name2semantic.tsv` | NAME, semantic codes; for the GPT alone, see `codes.py` |
| `6-name2semantic.json` | which codebook they belong to; ours, upstream ignores it |
| `7-sv_cn/NAME.pt` | speaker vector [1, V], a PyTorch tensor; v2Pro and v2ProPlus only |
| `held_out/` | the same for held-out clips; ours, upstream ignores it |
| `spectrograms/` | spectrogram cache, filled by training; ours, upstream ignores it |
| `mlx_vits.json` | manifest; ours, upstream ignores it |
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.system.files import atomic_write, single_name
from mlx_vits.system.json_files import build_record, read_json
from mlx_vits.system.text_files import read_text
from mlx_vits.text import CleanText, clean_text

TEXT_FILE = "2-name2text.txt"
BERT_FOLDER = "3-bert"
SSL_FOLDER = "4-cnhubert"
WAV_FOLDER = "5-wav32k"
CODES_FILE = "6-name2semantic.tsv"
SPEAKER_FOLDER = "7-sv_cn"
HELD_OUT_FOLDER = "held_out"
MANIFEST = "mlx_vits.json"
SHORTEST_FRAMES, LONGEST_FRAMES = 33, 1900  # per clip: upstream's sampler drops others
MOST_PHONEMES = 4096  # a hundred a second of the longest clip
_MOST_CHARACTERS = 2 * MOST_PHONEMES
WAV_HEADER_BYTES = 44
_FORMAT = 1
_COUNTS = re.compile(r"\[[0-9]{1,4}(, ?[0-9]{1,4})*\]")


class TextLine(NamedTuple):
    """One line of `2-name2text.txt`.

    Attributes:
        name: of the clip.
        phonemes: symbols.
        text: normalised.
        word2ph: phonemes of each character of the text; None where the language has none.
    """

    name: str
    phonemes: list[str]
    text: str
    word2ph: list[int] | None = None


@dataclass(frozen=True)
class SourceClip:
    """The source of a prepared clip.

    Attributes:
        name: of the file.
        sha256: of its bytes.
        seconds: duration, 0 if it cannot be read.
        text: transcript as given.
        held_out: whether it is kept from training.
        language: of the text.
        key: digest of everything its files were made from, see `journal.py`.
    """

    name: str
    sha256: str
    seconds: float
    text: str
    held_out: bool = False
    language: str = ""
    key: str = ""


@dataclass(frozen=True)
class DroppedClip:
    """A clip that is not trained on, and a sentence with the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """How a prepared folder was made.

    Attributes:
        content_encoder: the base's name, for messages.
        content_encoder_sha256: of its weights.
        ssl_dim: width of the features.
        version: of the phoneme symbols ("v1", "v2", ...).
        language: of transcripts that state none.
        sources: clips in the given order.
        dropped: clips that are not trained on.
        speaker_encoder_sha256: of its weights, "" if no speaker vectors were made.
    """

    content_encoder: str
    content_encoder_sha256: str
    ssl_dim: int
    version: str
    language: str
    sources: tuple[SourceClip, ...] = field(default_factory=tuple)
    dropped: tuple[DroppedClip, ...] = ()
    speaker_encoder_sha256: str = ""

    def write(self, folder: Path) -> None:
        """Write `mlx_vits.json`."""
        with atomic_write(folder / MANIFEST) as file:
            file.write(json.dumps({"format": _FORMAT} | asdict(self), indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Read `mlx_vits.json`; None in a folder that upstream prepared.

        Raises:
            DataError: the file is damaged.
        """
        path = folder / MANIFEST
        if not path.is_file():
            return None
        cure = "prepare the voice again"
        values = read_json(path, dict[str, Any], error=DataError, cure=cure)
        values.pop("format", None)
        manifest = build_record(cls, values, f"{path}:", error=DataError, cure=cure)
        for clip in manifest.sources:
            single_name(clip.name, str(path), DataError)
        return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Return a folder's manifest, None if it is missing or damaged."""
    try:
        return Manifest.read(folder)
    except DataError:
        return None


def fingerprint(folder: Path) -> str:
    """Return the hex SHA-256 of texts, manifest, and names and sizes of the other files."""
    digest = hashlib.sha256()
    for name in (TEXT_FILE, MANIFEST):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    for part in (WAV_FOLDER, SSL_FOLDER, SPEAKER_FOLDER):
        for path in sorted((folder / part).glob("*")):
            if path.name.startswith("."):  # e.g. .DS_Store, which comes and goes
                continue
            size = path.stat().st_size if path.exists() else 0  # a dangling link
            digest.update(os.fsencode(f"{part}/{path.name} {size}\n"))
    return digest.hexdigest()


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds prepared data rather than clips."""
    return (folder / TEXT_FILE).is_file()


def check_fits(folder: Path, config: Config, encoder_sha256: str | None, base: str) -> None:
    """Check that a prepared folder fits a base.

    Args:
        encoder_sha256: of the base's content encoder, None if it has none.
        base: its name.

    Raises:
        DataError: the folder was made with another content encoder, for another version, or with
            features of another width.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        return
    cure = "prepare the voice again with this base"
    if manifest.ssl_dim != config.reduced_dims.ssl_dim:
        raise DataError(
            f"{folder}: has features {manifest.ssl_dim} wide, the base {base} needs "
            f"{config.reduced_dims.ssl_dim}; {cure}"
        )
    if (manifest.version == "v1") != (config.version == "v1"):
        raise DataError(
            f"{folder}: has {manifest.version} phonemes, the base {base} is {config.version}; "
            f"{cure}"
        )
    if encoder_sha256 is not None and manifest.content_encoder_sha256 != encoder_sha256:
        raise DataError(
            f"{folder}: was made with the content encoder of {manifest.content_encoder}, the base "
            f"{base} has another; {cure}"
        )


def read_text_lines(path: Path, fault: Callable[[str], None] | None = None) -> list[TextLine]:
    """Read `2-name2text.txt`.

    Args:
        fault: called with a sentence for each malformed line, which is skipped as upstream does;
            if None, the first one is an error.

    Raises:
        DataError: the file cannot be read; without `fault` also for a malformed line.
    """
    lines = []
    content = read_text(path, cure="prepare the voice again")
    for number, row in enumerate(content.split("\n"), 1):
        try:
            lines += [_text_line(row, f"{path}: line {number}")] if row else []
        except DataError as error:
            if fault is None:
                raise DataError(f"{error}; prepare the voice again") from error
            fault(str(error))
    return lines


def _text_line(row: str, where: str) -> TextLine:
    columns = row.split("\t")
    if len(columns) != 4:
        raise DataError(f"{where} does not have four columns")
    phonemes = columns[1].split(" ")
    try:
        _check_count(len(phonemes), "phonemes", MOST_PHONEMES)
    except DataError as error:
        raise DataError(f"{where} {error}") from error
    word2ph = json.loads(columns[2]) if _COUNTS.fullmatch(columns[2]) else None
    return TextLine(single_name(columns[0], where, DataError), phonemes, columns[3], word2ph)


def clean_clip_text(text: str, language: str, version: str = "v2") -> CleanText:
    """Like `clean_text`, with a limit on the length of one clip's text.

    Raises:
        DataError: as `clean_text`, or the text is too long for a clip.
    """
    _check_count(len(text), "characters", _MOST_CHARACTERS)
    cleaned = clean_text(text, language, version)
    _check_count(len(cleaned.phonemes), "phonemes", MOST_PHONEMES)
    return cleaned


def _check_count(count: int, unit: str, most: int) -> None:
    if count > most:
        raise DataError(
            f"has {count:,} {unit}, more than a clip can hold ({most:,}); correct its text or cut "
            "it in pieces"
        )


def write_text_lines(path: Path, lines: list[TextLine], word2ph: list[list[int] | None]) -> None:
    """Write `2-name2text.txt`."""
    rows = [
        f"{line.name}\t{' '.join(line.phonemes)}\t{counts}\t{line.text}\n"
        for line, counts in zip(lines, word2ph, strict=True)
    ]
    with atomic_write(path) as file:
        file.write("".join(rows).encode())


def write_features(path: Path, features: np.ndarray) -> None:
    """Write features `(S, C)` as upstream's tensor [1, C, S], fp32."""
    write_torch_archive(path, np.ascontiguousarray(features.T[None], dtype=np.float32))


def clip_files(folder: Path, name: str, *, vector: bool = True) -> list[Path]:
    """Return the paths of a clip's audio, features and, optionally, speaker vector."""
    files = [folder / WAV_FOLDER / name, folder / SSL_FOLDER / f"{name}.pt"]
    return [*files, speaker_file(folder, name)] if vector else files


def speaker_file(folder: Path, name: str) -> Path:
    """Return the path of a clip's speaker vector."""
    return folder / SPEAKER_FOLDER / f"{name}.pt"


def read_speaker_vector(path: Path, sv_dim: int | None = None) -> np.ndarray:
    """Read upstream's tensor [1, V] as `(V,)` float32.

    Args:
        path: from `speaker_file`.
        sv_dim: V that the base expects; None takes any.

    Raises:
        DataError: the file is missing or damaged, of another width, or not finite.
    """
    tensor = _read_tensor(path)
    if tensor is None or tensor.ndim != 2 or len(tensor) != 1 or sv_dim not in (None, tensor.size):
        needed = "[1, values]" if sv_dim is None else f"[1, {sv_dim}], which the base needs"
        raise DataError(
            f"{path}: does not hold a speaker vector {needed}; prepare the voice again with this "
            "base"
        )
    return _finite(tensor[0].astype(np.float32), path)


def read_features(path: Path, ssl_dim: int) -> np.ndarray:
    """Read upstream's tensor [1, C, S] as features `(S, C)` float32.

    Raises:
        DataError: the file is missing or damaged, of another width, or not finite.
    """
    tensor = read_feature_tensor(path)
    if tensor.shape[1] != ssl_dim:
        raise DataError(
            f"{path}: has features {tensor.shape[1]} wide, the base needs {ssl_dim}; prepare the "
            "voice again with this base"
        )
    return _finite(np.ascontiguousarray(tensor[0].T, dtype=np.float32), path)


def read_feature_tensor(path: Path) -> np.ndarray:
    """Read upstream's tensor [1, C, S] unchanged.

    Raises:
        DataError: the file is damaged, or holds something else.
    """
    tensor = _read_tensor(path)
    if tensor is None or tensor.ndim != 3 or tensor.shape[0] != 1:
        raise DataError(f"{path}: does not hold features [1, channels, frames]; prepare it again")
    return tensor


def _read_tensor(path: Path) -> np.ndarray | None:
    try:
        content = read_torch_archive(path)
    except CheckpointError as error:
        raise DataError(f"{error}; prepare the voice again") from error
    return content if isinstance(content, np.ndarray) else None


def _finite(array: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(array).all():
        raise DataError(f"{path}: holds values that are not numbers; prepare the clip again")
    return array
