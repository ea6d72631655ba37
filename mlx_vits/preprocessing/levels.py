"""Normalise the level of training clips: halfway between the clip's own and a common peak.

Source: GPT-SoVITS `prepare_datasets/2-get-hubert-wav32k.py`.
"""

from __future__ import annotations

import numpy as np

from mlx_vits.errors import DataError

PEAK = 0.95
MIX = 0.5  # weight of the normalised signal
# Upstream's amplitude of the content encoder's input when it prepares data; the group norm after
# the first layer cancels it, up to its epsilon.
ENCODER_SCALE = 1145.14
LOUDEST = 2.2
SILENT = 1e-4


def mix_level(wav: np.ndarray, name: str) -> np.ndarray:
    """Average the clip with itself normalised to a peak of 0.95.

    Args:
        wav: `(N,)` float32, full scale 1.0.
        name: of the clip, for messages.

    Returns:
        `(N,)` float32; exceeds full scale only where the clip did.

    Raises:
        DataError: the clip is silent, or its peak is above `LOUDEST`.
    """
    peak = float(np.abs(wav).max(initial=0.0))
    if peak < SILENT:
        raise DataError(f"{name}: is silent; take it out or record it again")
    if peak > LOUDEST:
        raise DataError(
            f"{name}: has a peak of {peak:.1f} where 1.0 is full scale; export it again at a "
            "lower level"
        )
    return (wav / peak * (PEAK * MIX) + (1 - MIX) * wav).astype(np.float32)


def to_int16(wav: np.ndarray) -> np.ndarray:
    """Convert float to int16 by truncation, as upstream, but saturating instead of wrapping."""
    return np.clip(wav * 32768, -32768, 32767).astype(np.int16)
