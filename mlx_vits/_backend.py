"""What has to happen before `mlx` is first imported, on Linux only.

MLX's Linux wheels carry the reference BLAS, which uses one core and no vector instructions
(about 5 GFLOP/s on two cores, against 200 with OpenBLAS or MKL). A BLAS that is opened with
RTLD_GLOBAL first takes its place, because the wheel leaves its BLAS symbols to the dynamic linker.

MLX on CPU asks the C library for every intermediate array. glibc maps and unmaps anything over
128 KiB each time, and the page faults cost more than the arithmetic, so larger blocks are kept on
the heap instead.

On CUDA, MLX keeps a plan for each shape of convolution that it has met, 128 of them, and fails when
it has met more than twice as many. A step has hundreds, so more are kept. It also puts kernels into
graphs before it launches them, which takes longer than to launch them one by one: 148 ms a step of
the full-size v2 in place of 104, on an H200. So it is told not to; where it is let, by
`MLX_USE_CUDA_GRAPHS=1`, it keeps more of them than the 400 after twice which it fails. What kernels
that are launched one by one read is held until MLX hears that they are done. It asks after every
hundred, and lets ten hundred be due; asked after every 16, it takes as long and holds far less.

Nothing here runs on macOS, where MLX uses Accelerate and the GPU. `MLX_VITS_BLAS` overrides the
choice: the path of a library, or `none` for the wheel's own.

`MLX_VITS_DEVICE=cpu`, on any system, keeps MLX off the GPU. `MLX_VITS_CACHE_GB`, on any system,
says how much memory of freed arrays MLX keeps; see `memory.py`.
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
    """Which BLAS serves MLX's CPU matrix products.

    Attributes:
        name: "openblas", "mkl", "custom", "wheel" (MLX's own, slow) or "system" (macOS).
        path: file of the library, or "" where none was opened.
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
    """Opens the fastest BLAS at hand; call before the first import of `mlx`.

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
        # The same sums in the same order whatever the alignment: a resumed run must equal
        # the run that never stopped, bit for bit.
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
        if _open_global(mkl):
            return BlasStatus("mkl", mkl, "PyPI package mkl")
    return BlasStatus("wheel", "", "no OpenBLAS and no MKL found")


def tune_allocator() -> None:
    """Keeps large CPU arrays on the heap (glibc only; harmless elsewhere)."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_ON_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_ON_HEAP_BYTES)


def tune_cuda() -> None:
    """Lets MLX's CUDA backend remember all of a training; call before `mlx` is first imported."""
    if sys.platform.startswith("linux"):
        for name, value in _CUDA.items():
            os.environ.setdefault(name, value)
        if os.environ["MLX_USE_CUDA_GRAPHS"] == "0":
            os.environ.setdefault(*_LAUNCHES)


def choose_device() -> None:
    """Makes the CPU MLX's default device where `MLX_VITS_DEVICE` says so; imports `mlx`."""
    wish = os.environ.get("MLX_VITS_DEVICE", "")
    if not wish:
        return
    if wish != "cpu":
        warnings.warn(f"MLX_VITS_DEVICE={wish}: only cpu is known; ignored", stacklevel=2)
        return
    import mlx.core as mx

    mx.set_default_device(mx.cpu)


def limit_cache() -> None:
    """Bounds what MLX keeps of freed arrays; imports `mlx`."""
    from mlx_vits.system import memory

    memory.limit_cache()


BLAS = load_blas()
tune_allocator()
tune_cuda()
choose_device()
limit_cache()
