"""Weights that are made from their names, so that they need not be stored.

For each name a generator seeded with crc32(name) + seed draws a normal tensor, and the first rule
whose pattern is found in the name scales it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def make_tensor(name: str, shape: Sequence[int], seed: int, rules: list[Any]) -> np.ndarray:
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    x = random.standard_normal(tuple(shape), dtype=np.float32)
    _, kind, offset, scale = next(rule for rule in rules if re.search(rule[0], name))
    if kind == "const":
        return np.full(tuple(shape), offset, dtype=np.float32)
    if kind == "fanin":
        scale = scale / np.sqrt(np.prod(shape[1:]))
    if kind == "abs":
        x = np.abs(x)
    return (np.float32(offset) + np.float32(scale) * x).astype(np.float32)


def array_by_name(name: str, seed: int, shape: Sequence[int]) -> np.ndarray:
    """An input that is not stored: standard normal, drawn from its name."""
    return make_tensor(name, shape, seed, [[".*", "normal", 0.0, 1.0]])


def make_weights(
    state_dict: Path, seed: int, rules: list[Any], *, own_seed: bool = True
) -> dict[str, np.ndarray]:
    """All tensors of a `state_dict.json`; the crc32 there hold for the file's own seed."""
    weights = {}
    for name, entry in json.loads(state_dict.read_text()).items():
        tensor = make_tensor(name, entry["shape"], seed, rules)
        assert not own_seed or zlib.crc32(tensor.tobytes()) == entry["crc32"], name
        weights[name] = tensor
    return weights
