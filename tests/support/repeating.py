"""Whether something comes out the same twice."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

ON_CPU = mx.default_device().type == mx.DeviceType.cpu


def same(first: Any, second: Any, atol: float = 1e-5) -> bool:
    """To the bit on a CPU; on a GPU, whose libraries choose among products, within rounding."""
    first, second = np.array(first), np.array(second)
    if ON_CPU:
        return bool(np.array_equal(first, second, equal_nan=True))
    return bool(np.allclose(first, second, rtol=1e-4, atol=atol, equal_nan=True))
