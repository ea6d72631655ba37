"""Loudness of training clips: half way between the clip's own level and a common peak.

Source: GPT-SoVITS `prepare_datasets/2-get-hubert-wav32k.py`.
"""

from __future__ import annotations

import numpy as np

from mlx_vits.errors import DataError

PEAK = 0.95
MIX = 0.5  # share of the levelled signal
# Upstream feeds its content encoder this amplitude when it prepares data; a group norm after the
# first layer hides it, up to that layer's epsilon.
ENCODER_SCALE = 1145.14
LOUDEST = 2.2
SILENT = 1e-4


def mix_level(wav: np.ndarray, name: str) -> np.ndarray:
    """Half the clip at peak 0.95, half as it was.

    Args:
        wav: `(N,)` float32, full scale 1.0.
        name: of the clip, for messages.

    Returns:
        `(N,)` float32; above full scale only where the clip itself was.

    Raises:
        DataError: the clip is silent, or more than twice too loud.
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
    """Float to int16 by truncation, as upstream; limited to the range instead of wrapping."""
    return np.clip(wav * 32768, -32768, 32767).astype(np.int16)
