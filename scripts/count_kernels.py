"""Counts the kernels that a compiled step of the plain form launches, and its parts.

    python scripts/count_kernels.py [--version v2] [--batch 4] [--seconds 5]

The plain form is what runs on an Apple GPU: MLX alone, `mx.compile` with fusion. Its graph is built
here on any machine, as on a GPU that is not NVIDIA's, and counted. What only a GPU has a kernel of
its own for, as a layer norm, is counted as the CPU's several operations. Another commit is counted
from its checkout, with its package first:

    PYTHONPATH=/its/checkout python scripts/count_kernels.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import typer

import mlx_vits  # noqa: F401  (before mlx, as it chooses the BLAS)

import mlx.core as mx


@contextmanager
def as_on_metal() -> Iterator[None]:
    """Have everything that asks for the device choose what it does on an Apple GPU."""
    gpu = mx.Device(mx.DeviceType.gpu)
    with (
        patch.object(mx, "default_device", lambda: gpu),
        patch.object(mx.metal, "is_available", lambda: True),
        patch.object(mx.cuda, "is_available", lambda: False),
    ):
        yield


def main(version: str = "v2", batch: int = 4, seconds: float = 5.0) -> None:
    """Count, and print as JSON."""
    is_former = find_spec("mlx_vits.benchmarking") is not None
    work = import_module(f"mlx_vits.{'benchmarking' if is_former else 'tools.bench'}.work")
    found: dict[str, Any] = {}
    with as_on_metal():
        for compiled in (False, True):
            parts = work.StepParts(work.Work(version, batch, seconds), compiled=compiled)
            if is_former:
                counted = import_module("mlx_vits.benchmarking.kernels").count_kernels(parts)
            else:
                counted = parts.count_kernels()
            found["compiled" if compiled else "not compiled"] = {
                part: {name: getattr(graph, name) for name in ("kernels", "fused", "sources")}
                for part, graph in counted.items()
            }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
