"""A run's state on disk: everything that resuming needs, in one file, written whole or not at all.

The form is internal: MLX's own layout and parameter paths, so that a resumed run continues bit for
bit whatever form its weights have. What leaves a run is written by `voice_file.py`.

| prefix | what |
| --- | --- |
| `generator/`, `discriminator/` | parameters |
| `optimizer_g/`, `optimizer_d/` | AdamW's moments, steps and learning rates |
| `t2s/`, `optimizer/` | of the GPT stage, in a file of its own: parameters, the optimizer's state |

The place in the run (step, epoch, batches done, best score, ...) is JSON in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.checkpoints.tensors import check_finite, read_tensors, write_tensors
from mlx_vits.errors import CheckpointError
from mlx_vits.system.files import make_folder
from mlx_vits.system.json_files import check_ranges, parse_json

CHECKPOINTS = "checkpoints"  # within a run's folder
LAST = "last.safetensors"
BEST = "best.safetensors"
MOST_STEPS = 10**8  # years of training
_MOST_DIGITS, _MOST_STEPS = 4, 32  # of an index, and of a name
_COUNTS = ("step", "batch", "best_step", "epoch_batches")
VITS_PARTS = ("generator", "discriminator", "optimizer_g", "optimizer_d")
T2S_PARTS = ("t2s", "optimizer")


@dataclass(frozen=True)
class Place:
    """Where a run stands.

    Attributes:
        step: updates done.
        epoch: the epoch that is running, from 1.
        batch: batches of that epoch that are done.
        epoch_batches: batches of that epoch in all; 0 where it is not known.
        best_step: the step of the best score so far.
        best_score: mel distance on the held-out clips, lower is better; None before the first.
    """

    step: int = 0
    epoch: int = 1
    batch: int = 0
    best_step: int = 0
    best_score: float | None = None
    epoch_batches: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, epoch=(1, MOST_STEPS))
        check_ranges(self, **dict.fromkeys(_COUNTS, (0, MOST_STEPS)))

    @property
    def finished_epochs(self) -> int:
        is_whole = 0 < self.epoch_batches <= self.batch
        return self.epoch if is_whole else self.epoch - 1


@dataclass(frozen=True)
class RunState:
    """Trees of arrays, one for each part, and the place."""

    place: Place
    trees: dict[str, Any]


def write_run_state(path: Path, trees: dict[str, Any], place: Place) -> None:
    """Writes a state.

    Args:
        trees: of `VITS_PARTS` or `T2S_PARTS`.

    Raises:
        UserError: the file cannot be written; an older one stays as it was.
    """
    tensors: dict[str, mx.array] = {}
    for part, tree in trees.items():
        leaves: Any = tree_flatten(tree)
        tensors |= {f"{part}/{name}": array for name, array in leaves}
    make_folder(path.parent)
    write_tensors(path, tensors, {"place": json.dumps(asdict(place))})


def read_run_state(
    path: Path, *, finite: bool = True, parts: Sequence[str] = VITS_PARTS
) -> RunState:
    """Reads a state.

    Args:
        parts: whose trees it has to hold, and no others.
        finite: refuses weights and moments that hold NaN or infinity.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    file = read_tensors(path)
    if finite:
        check_finite(file.tensors, path)
    leaves: dict[str, list[tuple[str, mx.array]]] = {part: [] for part in parts}
    place = read_place(file.metadata, path)
    for name, array in file.tensors.items():
        part, _, key = name.partition("/")
        leaves.setdefault(part, []).append((key, array))
    trees = {part: _tree(leaves[part]) for part in leaves}
    groups = trees["optimizer_g"].get("states") if "optimizer_g" in parts else []
    if len(trees) > len(parts) or not all(trees.values()) or not isinstance(groups, list):
        raise CheckpointError(f"{path}: is not the state of a run; give a run's folder")
    return RunState(place, trees)


def _tree(leaves: list[tuple[str, mx.array]]) -> dict[str, Any]:
    """Arrays by path as a tree; empty where they are none that was written here."""
    steps = [step for name, _ in leaves for step in name.split(".")]
    deepest = max((name.count(".") for name, _ in leaves), default=0)
    # A tree is as deep as a name has parts, and a list as long as its largest index.
    if deepest > _MOST_STEPS or any(step.isdigit() and len(step) > _MOST_DIGITS for step in steps):
        return {}
    try:
        tree: Any = tree_unflatten(leaves)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):  # "a" beside "a.b"
        return {}
    found: Any = tree_flatten(tree)
    is_same = {name for name, _ in found} == {name for name, _ in leaves}
    return tree if is_same and isinstance(tree, dict) else {}


def read_place(metadata: Mapping[str, str], path: Path) -> Place:
    """Read the place in the run from a state's metadata.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return parse_json(
        metadata.get("place", "null"),
        Place,
        f"{path}: the place in the run",
        error=CheckpointError,
        cure="give the folder of a run, or start the run again",
    )
