"""Facts about the machine and what MLX has to work with."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from importlib import metadata
from typing import NamedTuple

import mlx.core as mx

from mlx_vits._backend import BLAS, BlasStatus
from mlx_vits.system.memory import machine_memory
from mlx_vits.version import __version__

_EXTRAS = {
    "zh": ("jieba", "pypinyin", "g2pM", "opencc"),
    "ja": ("pyopenjtalk-plus",),
    "ko": ("mecab-ko",),
    "yue": ("ToJyutping",),
    "asr": ("mlx-whisper",) if sys.platform == "darwin" else ("faster-whisper",),
    "hub": ("huggingface_hub",),
    "tensorboard": ("tensorboardX",),
}
_SIZE = {"cpu": 1024, "gpu": 4096}  # of the matrices whose product is timed
_SECONDS = 0.3


class Machine(NamedTuple):
    """What this machine is.

    Attributes:
        versions: of this project, MLX, Python and the system, by name.
        device: "cpu" or "gpu", where arrays are computed by default.
        device_name: as MLX names it.
        memory_bytes: of the machine; 0 where the system does not say.
        blas: which BLAS serves products on the CPU.
        rates: float32 matrix products a second as they were measured here, in FLOP/s, by device.
        compiler: path of g++, which MLX needs on a Linux CPU to compile a step; "" without one.
        ffmpeg: path, or "".
        extras: whether the packages of each optional extra are installed.
    """

    versions: dict[str, str]
    device: str
    device_name: str
    memory_bytes: int
    blas: BlasStatus
    rates: dict[str, float]
    compiler: str
    ffmpeg: str
    extras: dict[str, bool]


def examine() -> Machine:
    """Gathers everything; takes about a second, as it times matrix products."""
    device = mx.default_device()
    kind = "gpu" if device.type == mx.DeviceType.gpu else "cpu"
    name = str(mx.device_info(device).get("device_name", ""))
    rates = {"cpu": matmul_rate(mx.cpu, _SIZE["cpu"])}
    if kind == "gpu":
        rates["gpu"] = matmul_rate(mx.gpu, _SIZE["gpu"])
    return Machine(
        versions={
            "mlx_vits": __version__,
            "mlx": metadata.version("mlx"),
            "Python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        device=kind,
        device_name=name,
        memory_bytes=machine_memory(),
        blas=BLAS,
        rates=rates,
        compiler=(shutil.which("g++") or "") if sys.platform.startswith("linux") else "",
        ffmpeg=shutil.which("ffmpeg") or "",
        extras={extra: all(map(_installed, names)) for extra, names in _EXTRAS.items()},
    )


def matmul_rate(device: mx.Device | mx.DeviceType, size: int) -> float:
    """Best rate of square float32 matrix products, in FLOP/s.

    Args:
        device: where they are computed.
        size: rows and columns of both factors.
    """
    with mx.stream(device):
        a, b = mx.random.normal((size, size)), mx.random.normal((size, size))
        mx.eval(a @ b)
        best, begun = float("inf"), time.perf_counter()
        while time.perf_counter() - begun < _SECONDS or best == float("inf"):
            start = time.perf_counter()
            mx.eval(a @ b)
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
