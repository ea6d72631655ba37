"""`3-bert/NAME.pt`: what BERT makes of a Chinese text, for the GPT alone.

Source: GPT-SoVITS `prepare_datasets/1-get-text.py`. Axes: C channels, n phonemes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.config import BERT_CHANNELS
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepared import TextLine
from mlx_vits.system.files import make_folder
from mlx_vits.text.front_end import CharactersToFeatures, spread_features

Progress = Callable[[int, int, str], None]


def bert_file(folder: Path, name: str) -> Path:
    """Where a prepared folder keeps the BERT features of a clip."""
    return folder / layout.BERT_FOLDER / f"{name}.pt"


def read_bert_features(path: Path, phonemes: int, width: int = BERT_CHANNELS) -> np.ndarray:
    """Read upstream's tensor [C, n] as `(n, C)` float32.

    Args:
        phonemes: n of the clip's text.
        width: C.

    Raises:
        DataError: the file is missing or damaged, has another shape, or holds no numbers.
    """
    try:
        tensor = read_torch_archive(path)
    except CheckpointError as error:
        raise DataError(f"{error}; make its BERT features again") from error
    if not isinstance(tensor, np.ndarray) or tensor.shape != (width, phonemes):
        shape = list(tensor.shape) if isinstance(tensor, np.ndarray) else "something else"
        raise DataError(
            f"{path}: holds {shape} instead of the BERT features [{width}, {phonemes}] of the "
            f"clip's {phonemes} phonemes; delete it and make them again"
        )
    features = np.ascontiguousarray(tensor.T, dtype=np.float32)
    if not np.isfinite(features).all():
        raise DataError(f"{path}: holds values that are not numbers; delete it and make it again")
    return features


def chinese_clips(folder: Path) -> set[str]:
    """Names of the Chinese clips, in a folder that this project prepared; else none.

    Raises:
        DataError: its `mlx_vits.json` is damaged.
    """
    manifest = layout.Manifest.read(folder)
    sources = manifest.sources if manifest else ()
    return {clip.name for clip in sources if clip.language == "zh"}


def make_bert_features(
    folder: Path,
    chinese: Collection[str],
    characters_to_features: CharactersToFeatures,
    progress: Progress | None = None,
) -> None:
    """Write the BERT features of Chinese clips, but for those that are there already and fit.

    Args:
        folder: with `2-name2text.txt`; features in it are taken to be of these texts.
        chinese: names of the clips, see `chinese_clips`.
        characters_to_features: a normalised text of N characters to `(N, C)`, C = 1024.
        progress: called with clips done, clips in all and the clip's name.

    Raises:
        DataError: a clip's text cannot be read by BERT; it is named. What was written stays.
        CheckpointError: a file cannot be written.
    """
    lines = [
        line for line in layout.read_text_lines(folder / layout.TEXT_FILE) if line.name in chinese
    ]
    if lines:
        make_folder(folder / layout.BERT_FOLDER)
    for done, line in enumerate(lines, 1):
        path = bert_file(folder, line.name)
        if not _fits(path, len(line.phonemes)):
            features = _text_features(folder / layout.TEXT_FILE, line, characters_to_features)
            write_torch_archive(path, np.ascontiguousarray(features.T))
        if progress:
            progress(done, len(lines), line.name)


def _fits(path: Path, phonemes: int) -> bool:
    try:
        return path.is_file() and read_bert_features(path, phonemes) is not None
    except DataError:
        return False


def _text_features(
    path: Path, line: TextLine, characters_to_features: CharactersToFeatures
) -> np.ndarray:
    counts = line.word2ph or []
    if len(counts) != len(line.text) or sum(counts) != len(line.phonemes):
        raise DataError(
            f"{path}: {line.name} does not say which character each phoneme is of; prepare the "
            "voice again"
        )
    try:
        features = characters_to_features(line.text)
    except DataError as error:
        raise DataError(f"{path}: {line.name}: {error}") from error
    return np.array(spread_features(features, counts).astype(mx.float32))
