"""Whether, and how far, a training step and synthesis run through `mx.compile`.

It saves the time that Python takes to build the graph of a step's thousands of operations and, by
fusing operations, kernel launches and memory traffic. On CUDA, MLX compiles each fused kernel with
NVRTC at first use, 4 to 5 seconds each (0.32.4): on an H100 those of full-size v2 delay the first
step by over 400 seconds. So there it is used without fusion.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import mlx
import mlx.core as mx

# `mlx::core::set_compile_mode(CompileMode)`, which has no Python binding.
_SET_MODE = "_ZN3mlx4core16set_compile_modeENS0_11CompileModeE"
_WITHOUT_FUSION = 2  # CompileMode::no_fuse


@cache
def stop_fusing() -> bool:
    """Disable kernel fusion in `mx.compile` for the whole process.

    Compiled functions are then only traced, simplified and replayed, with the same kernels as
    without `mx.compile`.

    Returns:
        Whether this version of MLX supports it.
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
    """Whether a step is compiled: as chosen, else on a GPU only; on CUDA without fusion.

    On a Linux CPU g++ takes half a second per fused kernel, and building the graph takes a
    hundredth of running it. An Apple GPU, with Apple's own compiler, was not available to measure.

    Args:
        choice: None to decide by the device.
    """
    if choice is not None:
        return choice
    if mx.default_device().type != mx.DeviceType.gpu:
        return False
    return mx.metal.is_available() or stop_fusing()
