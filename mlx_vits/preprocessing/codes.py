"""`6-name2semantic.tsv`: the semantic codes of every clip, which the GPT is trained on.

Codes are places in the codebook of one base, so they are of use with that base alone. What they
were made with stands beside them, in `6-name2semantic.json`, rather than in `mlx_vits.json`: a run
of the SoVITS stage remembers that file, and goes on when codes are made later.

Source: GPT-SoVITS `prepare_datasets/3-get-semantic.py`, `AR/data/dataset.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.checkpoints.codebook import codebook_sha256
from mlx_vits.errors import DataError
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.system.files import atomic_write
from mlx_vits.system.json_files import read_json
from mlx_vits.system.text_files import read_text

HEADER = "item_name\tsemantic_audio"
RECORD = "6-name2semantic.json"
_MOST_CODES = 1 << 16
_MOST_DIGITS = 6

Progress = Callable[[int, int, str], None]


class CodeLine(NamedTuple):
    """One line of the file: a clip and its codes."""

    name: str
    codes: list[int]


@dataclass(frozen=True)
class CodesRecord:
    """What codes were made with.

    Attributes:
        codebook_sha256: see `checkpoints.codebook`.
        codes_sha256: of the file that was written; of another the record says nothing.
    """

    codebook_sha256: str
    codes_sha256: str


def read_code_lines(
    path: Path, fault: Callable[[str], None] | None = None, *, compat: bool = False
) -> list[CodeLine]:
    """Read `6-name2semantic.tsv`.

    Args:
        fault: called with a sentence on each line that cannot be used; where not given, the first
            is an error.
        compat: whether the first line is dropped whatever it holds, as upstream does; by default it
            is kept where it is no header.

    Raises:
        DataError: the file cannot be read; without `fault` also a line of another form.
    """
    rows = read_text(path, cure="make its codes again").split("\n")
    numbered = [(number, row.removesuffix("\r")) for number, row in enumerate(rows, 1)]
    numbered = [(number, row) for number, row in numbered if row.strip()]
    if compat or (numbered and numbered[0][1] == HEADER):
        del numbered[:1]
    lines = []
    for number, row in numbered:
        line = _code_line(row)
        if line is not None:
            lines.append(line)
            continue
        words = f"{path}: line {number} is not a name, a tab and codes"
        if fault is None:
            raise DataError(f"{words}; make its codes again")
        fault(words)
    return lines


def _code_line(row: str) -> CodeLine | None:
    columns = row.split("\t")
    numbers = columns[1].split() if len(columns) == 2 else []
    is_sound = 0 < len(numbers) <= _MOST_CODES and all(
        number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS for number in numbers
    )
    return CodeLine(columns[0], [int(number) for number in numbers]) if is_sound else None


def write_code_lines(path: Path, lines: list[CodeLine]) -> None:
    """Write `6-name2semantic.tsv`, whole or not at all.

    Raises:
        UserError: it cannot be written; an older one stays as it was.
    """
    rows = [HEADER, *(f"{name}\t{' '.join(map(str, codes))}" for name, codes in lines)]
    with atomic_write(path) as file:
        file.write("".join(f"{row}\n" for row in rows).encode())


def has_codes(folder: Path, codebook: str) -> bool:
    """Whether a prepared folder has codes of a codebook.

    In a folder of GPT-SoVITS's, where no record is, those that are there are taken to fit.

    Args:
        codebook: from `codebook_sha256`.
    """
    path, record = folder / layout.CODES_FILE, folder / RECORD
    if not path.is_file():
        return False
    if not record.is_file():
        return not (folder / layout.MANIFEST).is_file()
    try:
        cure = "make its codes again"
        made = read_json(record, CodesRecord, error=DataError, cure=cure)
    except DataError:
        return False
    return made == CodesRecord(codebook, file_sha256(path))


def make_codes(folder: Path, generator: SynthesizerTrn, progress: Progress | None = None) -> Path:
    """Write the codes of a prepared folder's clips, unless those of this base are there already.

    Args:
        folder: with `2-name2text.txt` and features.
        generator: of the base, in full precision.
        progress: called with clips done, clips in all and the clip's name.

    Returns:
        The file.

    Raises:
        DataError: the features of a clip are missing, damaged, too short or of another width; the
            clip is named, and nothing is written.
        UserError: the file cannot be written.
    """
    path, codebook = folder / layout.CODES_FILE, codebook_sha256(generator)
    if has_codes(folder, codebook):
        return path
    is_own = (folder / layout.MANIFEST).is_file()
    text_lines = layout.read_text_lines(folder / layout.TEXT_FILE, None if is_own else _ignore)
    names = list(dict.fromkeys(line.name for line in text_lines))
    lines = []
    for done, name in enumerate(names, 1):
        lines.append(CodeLine(name, clip_codes(folder, name, generator)))
        if progress:
            progress(done, len(names), name)
    write_code_lines(path, lines)
    record = CodesRecord(codebook, file_sha256(path))
    with atomic_write(folder / RECORD) as file:
        file.write(json.dumps(asdict(record)).encode())
    return path


def clip_codes(folder: Path, name: str, generator: SynthesizerTrn) -> list[int]:
    """Return the codes of one clip, 25 a second.

    Raises:
        DataError: its features are missing, damaged, too short or of another width.
    """
    path = folder / layout.SSL_FOLDER / f"{name}.pt"
    features = layout.read_features(path, generator.config.reduced_dims.ssl_dim)
    if len(features) < generator.ssl_proj.weight.shape[1]:
        raise DataError(f"{path}: is too short for a single code; take the clip out")
    return [int(code) for code in np.array(generator.extract_latent(mx.array(features)[None])[0])]


def _ignore(_: str) -> None:
    """Of a line that GPT-SoVITS leaves out as well."""
