"""Whether a training step runs through `mx.compile`."""

from __future__ import annotations

import mlx.core as mx


def compiles_step(choice: bool | None = None) -> bool:
    """Whether a step is compiled: what was chosen, else on an Apple GPU alone.

    On CUDA, MLX 0.32.4 has NVRTC compile every fused kernel at its first use, 4 to 5 seconds each:
    on an H100 the 106 of the full-size v2 hold up the first step for over 400 seconds, where one
    that is not compiled is done after 3.8 seconds, in time for thousands. On a Linux CPU, g++ takes
    half a second for each. An Apple GPU, whose kernels come from Apple's own compiler, was not at
    hand to be measured.

    Args:
        choice: None leaves it to the device.
    """
    if choice is not None:
        return choice
    return mx.default_device().type == mx.DeviceType.gpu and mx.metal.is_available()
