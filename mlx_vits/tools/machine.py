"""What this machine is, and how fast it multiplies matrices; for `doctor`, `bench` and scripts."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits._backend import BLAS
from mlx_vits.system.memory import machine_memory
from mlx_vits.version import __version__

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 0.3  # of one measurement


def device_kind() -> str:
    """Name the default device: "gpu" or "cpu"."""
    return "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"


def device_name() -> str:
    """Name the default device as MLX does, "Apple M4 Pro" for instance."""
    return str(mx.device_info(mx.default_device()).get("device_name", ""))


def is_cuda() -> bool:
    """Whether arrays are computed on NVIDIA's GPU."""
    return device_kind() == "gpu" and mx.cuda.is_available()


def uses_tf32() -> bool:
    """Whether fp32 products on NVIDIA round their factors to TF32, as MLX lets them by default."""
    return os.environ.get("MLX_ENABLE_TF32", "1") != "0"


def matmul_rate(
    side: int,
    dtype: mx.Dtype = mx.float32,
    device: mx.Device | mx.DeviceType | mx.Stream | None = None,
) -> float:
    """Measure the best rate of square matrix products, in operations a second.

    Args:
        side: rows and columns of both factors.
        dtype: of the factors.
        device: where they are computed; the default device where not given.
    """
    with mx.stream(device or mx.default_device()):
        a, b = (mx.random.normal((side, side)).astype(dtype) for _ in range(2))
        mx.eval(a, b, a @ b)
        best, begun = float("inf"), time.perf_counter()
        while time.perf_counter() - begun < _SECONDS or best == float("inf"):
            start = time.perf_counter()
            mx.eval(a @ b)
            best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best


def describe_machine() -> dict[str, Any]:
    """Gather machine, versions and commit, for the JSON of a measurement."""
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        "platform": platform.platform(),
        "system": f"macOS {platform.mac_ver()[0]}"
        if sys.platform == "darwin"
        else platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": machine_memory(),
        "device": device_kind(),
        "device_name": device_name(),
        "tf32": uses_tf32() if is_cuda() else None,
        "blas": BLAS.name,
        "threads": {name: os.environ[name] for name in limits if name in os.environ},
        "versions": {
            "python": platform.python_version(),
            "mlx_vits": __version__,
            **{name: metadata.version(name) for name in ("mlx", "numpy")},
        },
        "commit": _commit(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the package's commit, marked where it has changes; None outside of a checkout."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    if not (_ROOT / ".git").exists():
        return None
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None
