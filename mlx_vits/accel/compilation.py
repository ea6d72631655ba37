"""Whether, and how far, a training step and synthesis run through `mx.compile`.

It saves two things: the time in which Python describes a step's thousands of operations to MLX,
and, as it fuses operations into kernels of their own, launches and memory traffic. On CUDA MLX has
NVRTC compile every fused kernel at its first use, 4 to 5 seconds each (0.32.4): on an H100 those of
the full-size v2 hold up the first step for over 400 seconds. There the first saving is had alone.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import mlx
import mlx.core as mx

# `mlx::core::set_compile_mode(CompileMode)`, which has no name in Python.
_SET_MODE = "_ZN3mlx4core16set_compile_modeENS0_11CompileModeE"
_WITHOUT_FUSION = 2  # CompileMode::no_fuse


@cache
def stop_fusing() -> bool:
    """Has `mx.compile` keep every operation a kernel of MLX's own, in the whole process.

    What is compiled is then only recorded, simplified and played back, with the same kernels as
    without `mx.compile`.

    Returns:
        Whether this MLX can be told so.
    """
    for folder in mlx.__path__:
        for library in sorted(Path(folder, "lib").glob("libmlx.*")):
            try:
                set_mode = ctypes.CDLL(str(library))[_SET_MODE]
            except (OSError, AttributeError):
                continue
            set_mode.argtypes, set_mode.restype = [ctypes.c_int], None
            set_mode(_WITHOUT_FUSION)
            return True
    return False


def compiles_step(choice: bool | None = None) -> bool:
    """Whether a step is compiled: what was chosen, else on a GPU; on CUDA without fusing anything.

    On a Linux CPU g++ takes half a second for each fused kernel, and describing a step takes a
    hundredth of doing it. An Apple GPU, whose kernels come from Apple's own compiler, was not at
    hand to be measured.

    Args:
        choice: None leaves it to the device.
    """
    if choice is not None:
        return choice
    if mx.default_device().type != mx.DeviceType.gpu:
        return False
    return mx.metal.is_available() or stop_fusing()
