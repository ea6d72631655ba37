"""What a training step takes of memory on a device, for each byte that is counted.

`training/footprint.py` counts what a step holds, whatever it runs on; how often each byte of it is
there at the peak depends on a device's kernels and on when they free what they have read.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class MemoryFactors(NamedTuple):
    """Bytes at the peak for each byte of what is counted; the state's factor is 1.

    Attributes:
        update: of the gradients, while the weights are updated.
        gradients, decoder, judge, frames, pairs: during the backward, see `footprint.Parts`.
    """

    update: float
    gradients: float
    decoder: float
    judge: float
    frames: float
    pairs: float


class StepMemory(NamedTuple):
    """Factors of a step that keeps its activations, and of one that computes them again."""

    kept: MemoryFactors
    again: MemoryFactors


# Fitted by `scripts/fit_memory.py` to 26 uncompiled steps of six models, the full-size v2 among
# them, from 88 MB to 2.6 GB: 1.0 to 1.11 times what was measured, recomputed 1.0 to 1.23 times.
_CPU = StepMemory(
    kept=MemoryFactors(3.10, 1.58, 2.17, 0.97, 0.64, 3.20),
    again=MemoryFactors(3.90, 2.06, 0.50, 3.12, 0.14, 2.42),
)
# The CPU's, with what the forward leaves scaled to the full-size v2 on an H100 (MLX 0.32.4, CUDA,
# compiled), whose convolutions have workspaces: 3.21, 3.10, 5.49 and 7.63 GB for 1, 2, 4 and 8
# clips of 10 s, recomputed 2.73, 3.08, 3.90 and 5.39. No Apple GPU has been measured.
_GPU = StepMemory(
    kept=MemoryFactors(4.76, 1.58, 4.45, 1.99, 1.31, 6.56),
    again=MemoryFactors(3.90, 2.06, 1.06, 6.61, 0.30, 5.13),
)


def step_memory() -> StepMemory:
    """Return the factors of the default device."""
    return _GPU if mx.default_device().type == mx.DeviceType.gpu else _CPU
