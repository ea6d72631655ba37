"""The state of a run on disk: everything needed to resume, in one file written atomically.

The format is internal, with MLX's layout and parameter paths, so that a resumed run is
bit-identical whatever form its weights have. Voices for use outside a run are written by
`voice_file.py`.

| prefix | contents |
| --- | --- |
| `generator/`, `discriminator/` | parameters |
| `optimizer_g/`, `optimizer_d/` | AdamW's moments, step counts and learning rates |
| `t2s/`, `optimizer/` | of the GPT stage, in a file of its own: parameters, the optimizer's state |

The progress of the run (step, epoch, batches done, best score, ...) is JSON in the metadata.
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

CHECKPOINTS = "checkpoints"  # in a run's folder
LAST = "last.safetensors"
BEST = "best.safetensors"
GPT_LAST = "gpt_last.safetensors"
MOST_STEPS = 10**8  # years of training
_MAX_INDEX_DIGITS, _MAX_DEPTH = 4, 32  # of names in the file
_COUNTS = ("step", "batch", "best_step", "epoch_batches")
VITS_PARTS = ("generator", "discriminator", "optimizer_g", "optimizer_d")
T2S_PARTS = ("t2s", "optimizer")


@dataclass(frozen=True)
class Place:
    """The progress of a run.

    Attributes:
        step: updates done.
        epoch: current epoch, from 1.
        batch: batches of that epoch done.
        best_step: step of the best score so far.
        best_score: mel distance on the held-out clips, lower is better; None before the first.
        epoch_batches: batches in that epoch; 0 if unknown.
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
    """Write a run's state.

    Args:
        trees: of `VITS_PARTS` or `T2S_PARTS`.

    Raises:
        UserError: the file cannot be written; an older one is left unchanged.
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
    """Read a run's state.

    Args:
        parts: whose trees it has to hold, and no others.
        finite: whether to refuse NaN and infinity in weights and moments.

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
    """Build a tree from leaves by path; empty if the paths are malformed."""
    steps = [step for name, _ in leaves for step in name.split(".")]
    deepest = max((name.count(".") for name, _ in leaves), default=0)
    # Bounds memory: depth is the number of parts of a name, a list as long as its largest index.
    if deepest > _MAX_DEPTH or any(
        step.isdigit() and len(step) > _MAX_INDEX_DIGITS for step in steps
    ):
        return {}
    try:
        tree: Any = tree_unflatten(leaves)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):  # "a" beside "a.b"
        return {}
    found: Any = tree_flatten(tree)
    is_same = {name for name, _ in found} == {name for name, _ in leaves}
    return tree if is_same and isinstance(tree, dict) else {}


def read_place(metadata: Mapping[str, str], path: Path) -> Place:
    """Read the progress of a run from a state's metadata.

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
