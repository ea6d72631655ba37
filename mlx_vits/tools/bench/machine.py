"""What a measurement was made on, and how fast that machine multiplies matrices."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits._backend import BLAS
from mlx_vits.version import __version__

_ROOT = Path(__file__).resolve().parents[3]
_SIDE = {"cpu": 2048, "gpu": 8192}  # of the matrices that are multiplied
_PRODUCTS = 5


def measure_ceiling(dtype: mx.Dtype = mx.float32) -> float:
    """Operations a second of a square matrix product: the best of a few."""
    side = _SIDE[device_kind()]
    a, b = (mx.random.normal((side, side)).astype(dtype) for _ in range(2))
    mx.eval(a, b, a @ b)
    seconds = []
    for _ in range(_PRODUCTS):
        start = time.perf_counter()
        mx.eval(a @ b)
        seconds.append(time.perf_counter() - start)
    return 2.0 * side**3 / min(seconds)


def uses_tf32() -> bool:
    """Whether fp32 products on NVIDIA round their factors to TF32, as MLX lets them by default."""
    return os.environ.get("MLX_ENABLE_TF32", "1") != "0"


def device_kind() -> str:
    """ "gpu" or "cpu"."""
    return "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"


def describe_machine() -> dict[str, Any]:
    """Machine, versions and commit, for the JSON."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device_kind(),
        "device_name": str(mx.device_info(mx.default_device()).get("device_name", "")),
        "tf32": uses_tf32() if device_kind() == "gpu" and mx.cuda.is_available() else None,
        "blas": BLAS.name,
        "threads": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            if name in os.environ
        },
        "versions": {
            "python": platform.python_version(),
            "mlx_vits": __version__,
            **{name: _version(name) for name in ("mlx", "numpy")},
        },
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout that the package lies in, marked where it has changes; None outside one."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    if not (_ROOT / ".git").exists():
        return None
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None
