"""What a function makes MLX do, counted from graphs that are built and never computed.

Kernels are those of the device at hand and of what is in use there: a launch costs a GPU some
microseconds, however little it computes. Operations are those of the plain form, so that they are
the same on every device.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_vits import accel
from mlx_vits.accel.custom_vjp import skip_custom_vjp

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
    """Count what the arrays of a tree need that is not computed yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *_arrays(tree))
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


def count_operations(function: Callable[[mx.array], Any]) -> float:
    """Count the operations of a function's convolutions and matrix products, gradients included.

    A multiplication and an addition are two. Activations, norms, spectrograms and optimizers are
    bound by memory, and not counted.

    Args:
        function: of a random key, to a tree of arrays.
    """
    operations = 0.0

    def add(told: dict[str, Any]) -> None:
        nonlocal operations
        if told["type"] == "primitive" and told["name"] in ("Convolution", "Matmul", "AddMM"):
            operations += _operations(told)

    with mx.stream(mx.cpu), accel.use("off"), skip_custom_vjp(), _unfused():
        mx.export_function(add, lambda key: _arrays(function(key)), mx.random.key(0))
    return operations


@contextmanager
def _unfused() -> Iterator[None]:
    """Keep MLX from fusing activations within a `with` block: fused kernels are not exported."""
    fuses = count_graph(mx.compile(lambda x: mx.exp(mx.sin(x)))(mx.ones(3))).fused > 0
    if fuses:  # else it was told not to, which `enable_compile` would undo
        mx.disable_compile()
    try:
        yield
    finally:
        if fuses:
            mx.enable_compile()


def _operations(primitive: dict[str, Any]) -> float:
    (_, x, _), (_, weight, _), *_ = primitive["inputs"]
    (_, output, _), *_ = primitive["outputs"]
    if primitive["name"] != "Convolution":
        return 2.0 * prod(output) * x[-1]
    zeros_between = primitive["arguments"][4]  # a transposed convolution's stride
    return 2.0 * prod(output) * prod(weight[1:]) / prod(zeros_between)


def _arrays(tree: Any) -> list[mx.array]:
    leaves: Any = tree_flatten(tree)
    return [array for _, array in leaves]
