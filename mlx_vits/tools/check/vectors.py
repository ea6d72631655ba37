"""Speaker vectors: whether all clips are of one speaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_vits.preprocessing import prepared as layout
from mlx_vits.tools.check.clips import read_vector
from mlx_vits.tools.check.facts import ClipFacts, VectorSummary
from mlx_vits.tools.check.outliers import far_from_median

_LESS_LIKE = 1.05  # not measured: no encoder of full size was at hand


class Compared(NamedTuple):
    """The summary, and the clips with their `likeness`."""

    summary: VectorSummary
    clips: list[ClipFacts]


def compare_vectors(folder: Path, clips: Sequence[ClipFacts]) -> Compared:
    """Compares the speaker vectors of a prepared folder, of one width, with their mean.

    They are read twice rather than kept. Which cosine tells two speakers apart is not known here:
    clips are named for being unlike the others, the mean is reported and not judged.

    Args:
        folder: the prepared one.
        clips: all of its clips.
    """
    widths = Counter(clip.vector_width for clip in clips if clip.vector_width is not None)
    if not widths:
        return Compared(VectorSummary(0, {}, None, ()), list(clips))
    width = widths.most_common(1)[0][0]
    total, count = np.zeros(width), 0
    for clip in clips:
        if clip.vector_width == width:
            total += _read_unit(folder, clip)
            count += 1
    norm = float(np.linalg.norm(total))
    compared = [
        replace(clip, likeness=float(_read_unit(folder, clip) @ total / max(norm, 1e-12)))
        if clip.vector_width == width
        else clip
        for clip in clips
    ]
    alike = [clip for clip in compared if clip.likeness is not None]
    far = far_from_median(
        [clip.likeness or 0.0 for clip in alike], factor=_LESS_LIKE, below_only=True
    )
    # The squared norm of a sum of unit vectors is their number and the cosines of all pairs.
    cosine = (norm**2 - count) / (count * (count - 1)) if count > 1 else None
    outliers = tuple(clip.name for clip, is_far in zip(alike, far, strict=True) if is_far)
    shown = {str(wide): clips_of for wide, clips_of in widths.most_common()}
    return Compared(VectorSummary(widths.total(), shown, cosine, outliers), compared)


def _read_unit(folder: Path, clip: ClipFacts) -> np.ndarray:
    part = folder / layout.HELD_OUT_FOLDER if clip.held_out else folder
    vector = read_vector(layout.speaker_file(part, clip.name)).astype(np.float64)
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
