"""How many kernels a step launches, from the graphs that MLX builds for it.

A kernel costs a GPU some microseconds, however little it computes. Graphs are built and counted,
not computed, and the nets stay as they are.

What is counted is the graph of the device at hand: on a CPU, convolutions and layer norms consist
of more operations than on a GPU.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_vits.tools.bench.work import StepParts

# Other strides or another shape of the same memory; a reshape copies where it cannot be one.
_VIEWS = {
    *("AsStrided", "Broadcast", "BroadcastAxes", "Copy", "CustomTransforms", "Depends"),
    *("ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "StopGradient"),
    *("Transpose", "Unflatten"),
}
_NODE = re.compile(r'\{ (\d+) \[label ="([^"]*)", shape=rectangle\]')
_INPUT = re.compile(r'^"[^"]*" -> (\d+)$')
_COMPILED = "Compiled"  # begins the name of every fused kernel


class Graph(NamedTuple):
    """What arrays that are not computed yet consist of.

    Attributes:
        operations: nodes of the graph.
        kernels: of them, those that compute or copy; a concatenation copies each of its inputs.
        fused: kernels that `mx.compile` put together.
        sources: different ones among these, each compiled once.
        kinds: operations of each kind.
    """

    operations: int
    kernels: int
    fused: int
    sources: int
    kinds: dict[str, int]


def count_graph(tree: Any) -> Graph:
    """Counts what the arrays of a tree need that is not computed yet."""
    leaves: Any = tree_flatten(tree)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *(array for _, array in leaves))
        return _count(path.read_text().splitlines())


def _count(lines: Iterable[str]) -> Graph:
    names: dict[str, str] = {}
    inputs: Counter[str] = Counter()
    for line in lines:
        if found := _NODE.search(line):
            names[found[1]] = found[2]
        elif found := _INPUT.search(line):
            inputs[found[1]] += 1
    fused = [name for name in names.values() if name.startswith(_COMPILED)]
    kernels = sum(
        inputs[node] if name == "Concatenate" else not _is_view(name)
        for node, name in names.items()
    )
    kinds = Counter(_COMPILED if n.startswith(_COMPILED) else n for n in names.values())
    return Graph(len(names), kernels, len(fused), len(set(fused)), dict(kinds.most_common()))


def _is_view(name: str) -> bool:
    return name in _VIEWS or name.startswith("View ")  # of another type


def count_kernels(parts: StepParts) -> dict[str, Graph]:
    """Graphs of a step, of its parts and of synthesis.

    Returns:
        `forward_g`, `step_d`, `step` and `synthesis` as they are timed; of a step's operations,
        those of `weight_norm` and of the `update` of all parameters by AdamW.
    """
    return {name: count_graph(tree) for name, tree in parts.graphs()}
