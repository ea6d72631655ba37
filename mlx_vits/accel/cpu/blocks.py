"""Equivalents of blocks on a CPU."""

from __future__ import annotations

import sys

from mlx_vits.accel.cpu.pieces import PiecewiseGenerator
from mlx_vits.models.generator import Generator

EQUIVALENTS: dict[type, type] = {}
# On macOS the units of a CPU that multiply are shared by its cores, and were not measured.
FOR_INFERENCE: dict[type, type] = (
    {Generator: PiecewiseGenerator} if sys.platform.startswith("linux") else {}
)
