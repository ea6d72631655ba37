"""What the GPT is trained on beside texts: codes, and BERT features of Chinese."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from mlx_vits.checkpoints.bert_file import find_bert, read_bert
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.bert_features import bert_file, chinese_clips, make_bert_features
from mlx_vits.preprocessing.codes import make_codes


def make_gpt_data(
    folder: Path, generator: SynthesizerTrn, say: Callable[[str], None] | None = None
) -> None:
    """Write what a prepared folder lacks for the GPT, held-out clips included.

    Args:
        folder: prepared by this project or by GPT-SoVITS.
        generator: of the base, in full precision; its codebook gives the codes.
        say: called with a line before BERT, which takes its time, is read.

    Raises:
        DataError: the features or the text of a clip are missing or damaged; it is named.
        CheckpointError: a clip is Chinese, and there is no BERT; or a file cannot be written.
    """
    parts = parts_of(folder)
    for part in parts:
        make_codes(part, generator)
    if not needs_bert(folder):
        return
    chinese = chinese_clips(folder)
    bert = read_bert(find_bert(generator.config.version))
    if say:
        say("Chinese texts are read by BERT ...")
    for part in parts:
        make_bert_features(part, chinese, bert)


def needs_bert(folder: Path) -> bool:
    """Whether a prepared folder has Chinese clips without BERT features.

    Raises:
        DataError: the folder is damaged.
    """
    chinese = chinese_clips(folder)
    clips = _clips(parts_of(folder)) if chinese else []
    return any(name in chinese and not bert_file(part, name).is_file() for part, name in clips)


def gpt_fingerprint(folder: Path) -> str:
    """Return the hex SHA-256 of codes, and of names and sizes of BERT features."""
    digest = hashlib.sha256()
    for part in parts_of(folder):
        path = part / layout.CODES_FILE
        digest.update(path.read_bytes() if path.is_file() else b"")
        for _, name in _clips([part]):
            features = bert_file(part, name)
            if features.is_file():
                digest.update(os.fsencode(f"{name} {features.stat().st_size}\n"))
    return digest.hexdigest()


def parts_of(folder: Path) -> list[Path]:
    """A prepared folder, and that of its held-out clips if it has any."""
    held_out = folder / layout.HELD_OUT_FOLDER
    return [folder, held_out] if layout.is_prepared(held_out) else [folder]


def _clips(parts: list[Path]) -> list[tuple[Path, str]]:
    """Folder and name of every clip with a text."""
    return [
        (part, line.name)
        for part in parts
        for line in layout.read_text_lines(part / layout.TEXT_FILE, lambda _: None)
    ]
