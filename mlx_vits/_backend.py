"""Settings that must be made before `mlx` is first imported; most are for Linux.

**BLAS.** MLX's Linux wheels carry the reference BLAS, which uses one core and no vector
instructions (about 5 GFLOP/s on two cores, against 200 with OpenBLAS or MKL). The wheel leaves its
BLAS symbols to the dynamic linker, so another BLAS that is opened first with RTLD_GLOBAL takes
their place. `MLX_VITS_BLAS` overrides the choice: the path of a library, or `none` for the wheel's
own. macOS needs none of this: there MLX uses Accelerate and the GPU.

**Allocator.** On CPU, MLX asks the C library for every intermediate array. glibc maps and unmaps
anything over 128 KiB each time, and the page faults cost more than the arithmetic, so larger blocks
are kept on the heap.

**CUDA.** MLX caches a plan per convolution shape, 128 of them, and fails after twice as many. A
step has hundreds, so the cache is enlarged. CUDA graphs are off: building them costs more than
launching kernels one by one (148 ms against 104 per step of the full-size v2 on an H200). If they
are turned on by `MLX_USE_CUDA_GRAPHS=1`, their cache is enlarged too, since it fails at twice its
400. Without graphs, the inputs of launched kernels are held until MLX learns that they are done; by
default it asks every 100 kernels and lets 1,000 be pending. Asking every 16 is as fast and holds
far less.

On any system, `MLX_VITS_DEVICE=cpu` keeps MLX off the GPU, and `MLX_VITS_CACHE_GB` sets how much
memory of freed arrays MLX keeps; see `system/memory.py`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
_KEEP_ON_HEAP_BYTES = 1 << 30

_CUDA = {
    "MLX_USE_CUDA_GRAPHS": "0",
    "MLX_CUDA_CONV_CACHE_SIZE": "16384",
    "MLX_CUDA_GRAPH_CACHE_SIZE": "4096",
    "MLX_ENABLE_CACHE_THRASHING_CHECK": "0",
}
_LAUNCHES = ("MLX_MAX_OPS_PER_BUFFER", "16")  # without graphs

_OPENBLAS_NAMES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so")


class BlasStatus(NamedTuple):
    """The BLAS behind MLX's CPU matrix products.

    Attributes:
        name: "openblas", "mkl", "custom", "wheel" (MLX's own, slow) or "system" (macOS).
        path: file of the library, or "" if none was opened.
        note: why, in words.
    """

    name: str
    path: str
    note: str


def _open_global(path: str) -> bool:
    try:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _mkl_library() -> str | None:
    """Path of PyPI's `libmkl_rt.so.N`, or None where the package is not installed."""
    try:
        files = metadata.files("mkl") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.startswith("libmkl_rt.so"):
            path = Path(str(file.locate())).resolve()
            return str(path) if path.exists() else None
    return None


def load_blas() -> BlasStatus:
    """Open the fastest BLAS available; call before the first import of `mlx`.

    Order: `MLX_VITS_BLAS`, a system OpenBLAS, PyPI's MKL, the wheel's own.
    """
    if not sys.platform.startswith("linux"):
        return BlasStatus("system", "", "macOS uses Accelerate")
    if "mlx.core" in sys.modules:
        return BlasStatus("wheel", "", "mlx was imported before mlx_vits")
    wish = os.environ.get("MLX_VITS_BLAS", "")
    if wish == "none":
        return BlasStatus("wheel", "", "MLX_VITS_BLAS=none")
    if wish:
        if _open_global(wish):
            return BlasStatus("custom", wish, "MLX_VITS_BLAS")
        return BlasStatus("wheel", "", f"MLX_VITS_BLAS={wish} cannot be opened")
    for name in _OPENBLAS_NAMES:
        if _open_global(name):
            return BlasStatus("openblas", name, "system library")
    mkl = _mkl_library()
    if mkl is not None:
        # Sums in the same order whatever the alignment, so that a resumed run equals the run
        # that never stopped, bit for bit.
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
        if _open_global(mkl):
            return BlasStatus("mkl", mkl, "PyPI package mkl")
    return BlasStatus("wheel", "", "no OpenBLAS and no MKL found")


def tune_allocator() -> None:
    """Keep large CPU arrays on the heap (glibc only; harmless elsewhere)."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_ON_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_ON_HEAP_BYTES)


def tune_cuda() -> None:
    """Size the caches of MLX's CUDA backend for training; call before the first import of `mlx`."""
    if sys.platform.startswith("linux"):
        for name, value in _CUDA.items():
            os.environ.setdefault(name, value)
        if os.environ["MLX_USE_CUDA_GRAPHS"] == "0":
            os.environ.setdefault(*_LAUNCHES)


def choose_device() -> None:
    """Make the CPU MLX's default device if `MLX_VITS_DEVICE` says so; imports `mlx`."""
    wish = os.environ.get("MLX_VITS_DEVICE", "")
    if not wish:
        return
    if wish != "cpu":
        warnings.warn(f"MLX_VITS_DEVICE={wish}: only cpu is known; ignored", stacklevel=2)
        return
    import mlx.core as mx

    mx.set_default_device(mx.cpu)


def limit_cache() -> None:
    """Bound the memory that MLX keeps of freed arrays; imports `mlx`."""
    from mlx_vits.system import memory

    memory.limit_cache()


BLAS = load_blas()
tune_allocator()
tune_cuda()
choose_device()
limit_cache()
