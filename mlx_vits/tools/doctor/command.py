"""`mlx-vits doctor`: what MLX has to work with here, and whether its numbers are right."""

from __future__ import annotations

import json
import math
import platform
import shutil
import sys
from importlib import metadata
from typing import NamedTuple

import mlx.core as mx
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mlx_vits._backend import BLAS, BlasStatus
from mlx_vits.system.memory import machine_memory
from mlx_vits.tools.doctor.numerics import Difference, compare, tolerance
from mlx_vits.tools.machine import device_kind, device_name, matmul_rate
from mlx_vits.tools.pages import pairs, plain, safe_text, standard_output
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
_SIDE = {"cpu": 1024, "gpu": 4096}  # of the matrices whose product is timed
WRONG = 1  # exit status where an operation is off


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
    """Gather everything; takes about a second, as it times matrix products."""
    rates = {"cpu": matmul_rate(_SIDE["cpu"], device=mx.cpu)}
    if device_kind() == "gpu":
        rates["gpu"] = matmul_rate(_SIDE["gpu"], device=mx.gpu)
    return Machine(
        versions={
            "mlx_vits": __version__,
            "mlx": metadata.version("mlx"),
            "Python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        device=device_kind(),
        device_name=device_name(),
        memory_bytes=machine_memory(),
        blas=BLAS,
        rates=rates,
        compiler=(shutil.which("g++") or "") if sys.platform.startswith("linux") else "",
        ffmpeg=shutil.which("ffmpeg") or "",
        extras={extra: all(map(_is_installed, names)) for extra, names in _EXTRAS.items()},
    )


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def diagnose(*, for_machines: bool) -> int:
    """Prints what this machine runs on and whether its numbers are right.

    Args:
        for_machines: one JSON object instead of a page.

    Returns:
        The exit status: 0, or `WRONG` where an operation differs by more than the tolerance.
    """
    machine, allowed, differences = examine(), tolerance(), compare()
    wrong = [difference for difference in differences if not difference.worst <= allowed]
    remarks = [*_remarks(machine), *_cure(machine, wrong, allowed)]
    if for_machines:
        page = {
            "machine": plain(machine),
            "tolerance": allowed,
            "differences": plain(differences),
            "remarks": remarks,
            "right": not wrong,
        }
        print(json.dumps(page, indent=1))
    else:
        _show(machine, differences, allowed, remarks)
    return WRONG if wrong else 0


def _remarks(machine: Machine) -> list[str]:
    remarks = []
    if machine.device == "cpu" and machine.blas.name == "wheel":
        arm = "aarch64" in machine.versions["system"] or "arm64" in machine.versions["system"]
        package = "" if arm else ", or the Python package mkl,"
        remarks.append(
            f"MLX runs on its own slow BLAS ({machine.blas.note}): install OpenBLAS "
            f"(libopenblas0-pthread on Debian and Ubuntu){package} and look here again."
        )
    if machine.device == "cpu" and machine.versions["system"].startswith("Darwin"):
        remarks.append("MLX has no GPU here: it needs a Mac with Apple silicon, and macOS itself.")
    return remarks


def _cure(machine: Machine, wrong: list[Difference], allowed: float) -> list[str]:
    if not wrong:
        return []
    names = ", ".join(difference.name for difference in wrong)
    where = "GPU" if machine.device == "gpu" else "CPU"
    cures = [
        f"On this {where} {names} comes out wrong (more than {allowed:g} off): a voice trained "
        "here would too. Update mlx first (`pip install -U mlx`)."
    ]
    if machine.device == "gpu":
        cures.append("Until that helps, set MLX_VITS_DEVICE=cpu, which is slower and right.")
    elif machine.blas.name not in ("wheel", "system"):
        cures.append("Until that helps, set MLX_VITS_BLAS=none, which is slower and right.")
    cures.append("Please report it with the output of `mlx-vits doctor --json`.")
    return cures


def _show(
    machine: Machine, differences: list[Difference], allowed: float, remarks: list[str]
) -> None:
    console = standard_output()
    console.print(pairs(_about(machine)))
    for remark in remarks:
        console.print(safe_text(f"! {remark}", "bold yellow"))
    table = Table(box=SIMPLE_HEAD)
    table.add_column("operation")
    table.add_column("largest difference", justify="right")
    table.add_column("of")
    table.add_column("")
    for one in differences:
        what = one.error or (
            "its value" if one.array == "value" else f"the gradient of {one.array}"
        )
        far = "-" if math.isinf(one.worst) else f"{one.worst:.1e}"
        table.add_row(
            safe_text(one.name), far, safe_text(what), "right" if one.worst <= allowed else "WRONG"
        )
    console.print(table)
    other = "the CPU's plain loops" if machine.device == "gpu" else "plain loops"
    console.print(
        safe_text(
            f"Shares of the largest entry, against {other}; up to {allowed:g} is rounding.", "dim"
        )
    )


def _about(machine: Machine) -> list[tuple[str, str]]:
    blas = machine.blas
    linux = machine.versions["system"].startswith("Linux")
    have = [extra for extra, there in machine.extras.items() if there]
    rates = [
        f"{rate / 1e9:,.0f} GFLOP/s on the {name.upper()}" for name, rate in machine.rates.items()
    ]
    return [
        *machine.versions.items(),
        ("device", f"{machine.device.upper()}, {machine.device_name}"),
        ("memory", f"{machine.memory_bytes / 2**30:.0f} GiB" if machine.memory_bytes else ""),
        ("BLAS", f"{blas.name} ({blas.note}) {blas.path}".strip()),
        ("products", ", ".join(rates)),
        ("g++", (machine.compiler or "none: steps are never compiled here") if linux else ""),
        ("ffmpeg", machine.ffmpeg or "none: clips in libsndfile's forms only"),
        ("extras", ", ".join(have) or "none"),
    ]
