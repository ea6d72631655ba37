"""All weights of a net in one vector, and each layer's weight gathered from it in any layout.

AdamW, weight norm and the mean of the weights then take a handful of operations, however many
tensors there are, and layers that see the same input are merged into one by laying their weights
side by side.

The vector holds, in this order: the directions `weight_v` of all weight-normed layers, a row for
each norm, rows of one length together; their lengths `weight_g`; every other tensor; one zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.accel.custom_vjp import custom_vjp

ZERO = -1  # in an index: no weight of the net, but the constant 0
_ALIGNED = 32  # elements, 128 bytes: cuBLAS refuses some products of arrays that begin elsewhere
_TRANSPOSED = "dec.ups."  # one norm for each input channel, the last axis


class Flat:
    """Where the tensors of a net lie in one vector.

    Args:
        shapes: of the parameters by path, in MLX's axes.
        frozen: beginnings of paths that are left out.

    Attributes:
        places: for each parameter the indices of its elements in the vector, in its own shape.
        weights: for each layer's effective weight and every other tensor the indices of its
            elements in the folded vector; what `add` takes.
        size: of the vector.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], frozen: tuple[str, ...] = ()):
        names = [name for name in shapes if not name.startswith(frozen or ("\0",))]
        directions = [name for name in names if name.endswith("weight_v")]
        lengths = {name: f"{name.removesuffix('v')}g" for name in directions}
        apart = {*directions, *lengths.values()}
        self.places: dict[str, np.ndarray] = {}
        self.weights: dict[str, np.ndarray] = {}
        self._blocks = self._place_rows({name: shapes[name] for name in directions})
        norms = sum(rows for rows, _ in self._blocks)
        at = folded = sum(rows * width for rows, width in self._blocks)
        for name in sorted(directions, key=lambda name: self.places[name].min()):
            self.places[lengths[name]] = _consecutive(at, shapes[lengths[name]])
            at += math.prod(shapes[lengths[name]])
        for name in (name for name in names if name not in apart):
            self.places[name] = _consecutive(at, shapes[name])
            self.weights[name] = self.places[name] - norms
            at += math.prod(shapes[name])
        self.size = at + 1
        self._zero = at - norms
        self._ends = [folded, folded + norms]
        self._names: list[str] = []
        self._indices: list[np.ndarray] = []
        self._scales: list[np.ndarray] = []

    def _place_rows(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int]]:
        """Rows and width of each block of directions."""
        by_width: dict[int, list[str]] = {}
        for name, shape in shapes.items():
            rows = shape[-1] if name.startswith(_TRANSPOSED) else shape[0]
            by_width.setdefault(math.prod(shape) // rows, []).append(name)
        at, blocks = 0, []
        for width, names in by_width.items():
            start = at
            for name in names:
                shape = shapes[name]
                if name.startswith(_TRANSPOSED):
                    order = _consecutive(at, (shape[-1], *shape[:-1]))
                    self.places[name] = np.moveaxis(order, 0, -1)
                else:
                    self.places[name] = _consecutive(at, shape)
                self.weights[name.removesuffix("_v")] = self.places[name]
                at += math.prod(shape)
            blocks.append(((at - start) // width, width))
        return blocks

    def add(self, name: str, index: np.ndarray, scale: np.ndarray | float = 1.0) -> None:
        """Names a layer's weight: indices from `weights` in the layout wanted, or `ZERO`.

        Args:
            scale: what its elements are multiplied by.
        """
        self._names.append(name)
        self._scales.append(np.broadcast_to(np.float32(scale), index.shape))
        self._indices.append(np.where(index == ZERO, self._zero, index).astype(np.int32))

    def finish(self) -> None:
        """Ends the additions.

        Raises:
            ValueError: a weight of the net is used twice or not at all.
        """
        # Those whose size is odd come last: all others begin where GPUs read fastest.
        order = sorted(range(len(self._names)), key=lambda n: -math.gcd(self._indices[n].size, 8))
        self._names, self._indices, self._scales = (
            [some[n] for n in order] for some in (self._names, self._indices, self._scales)
        )
        index = np.concatenate([*(i.ravel() for i in self._indices), [self._zero]]).astype(np.int32)
        counts = np.bincount(index, minlength=self._zero + 1)[: self._zero]
        if (counts != 1).any():
            wrong = [n for n, places in self.weights.items() if (counts[places] != 1).any()]
            raise ValueError(f"not used exactly once: {', '.join(wrong)}")
        shapes = [index.shape for index in self._indices]
        ends = list(itertools.accumulate(index.size for index in self._indices))
        scales = np.concatenate([*(scale.ravel() for scale in self._scales), [1]])
        self._gather = _gatherer(self._normed_rows(), index, scales, shapes, ends)

    def _normed_rows(self) -> _NormedRows:
        """The rows that are normed in one matrix, as wide as the widest."""
        rows, width = self._ends[1] - self._ends[0], max([0, *(w for _, w in self._blocks)])
        index, at, row = np.full((rows, width), self.size - 1), 0, 0
        for count, own in self._blocks:
            index[row : row + count, :own] = _consecutive(at, (count, own))
            at, row = at + count * own, row + count
        return _NormedRows(index, self._ends[0], self._zero + 1)

    def __call__(self, vector: mx.array) -> dict[str, mx.array]:
        """The layers' weights by the names that `add` gave them."""
        return dict(zip(self._names, self._gather(vector), strict=True))

    def pack(self, tensors: Mapping[str, Any]) -> mx.array:
        """The vector of tensors in MLX's axes."""
        vector = np.zeros(self.size, np.float32)
        for name, places in self.places.items():
            vector[places] = np.array(tensors[name], dtype=np.float32)
        return mx.array(vector)

    def mark(self, beginnings: tuple[str, ...]) -> mx.array:
        """Which elements of the vector are of tensors whose paths begin so, bool."""
        marks = np.zeros(self.size, bool)
        for name, places in self.places.items():
            marks[places] = name.startswith(beginnings)
        return mx.array(marks)

    def unpack(self, vector: mx.array) -> dict[str, mx.array]:
        """The tensors of a vector, in MLX's axes."""
        flat = np.array(vector)
        return {name: mx.array(flat[places]) for name, places in self.places.items()}


class Packed:
    """The arrays of a tree one after another in one vector, each as it is, zeros between them.

    Args:
        tree: of the arrays' shapes.
    """

    def __init__(self, tree: Any):
        leaves: Any = tree_flatten(tree)
        self._names = [name for name, _ in leaves]
        shapes = [array.shape for _, array in leaves]
        ends = list(itertools.accumulate(_aligned(array.size) for _, array in leaves))[:-1]

        def forward(vector: mx.array) -> tuple[mx.array, ...]:
            parts = zip(mx.split(vector, ends), shapes, strict=True)
            return tuple(part[: math.prod(shape)].reshape(shape) for part, shape in parts)

        def gradient(primal: Any, cotangents: Any, outputs: Any) -> mx.array:
            return _end_to_end(cotangents)

        self._split = custom_vjp(forward, gradient)

    def pack(self, tree: Any) -> mx.array:
        """The vector of a tree of the same shapes."""
        arrays = dict(tree_flatten(tree))
        return _end_to_end([arrays[name] for name in self._names])

    def __call__(self, vector: mx.array) -> Any:
        """The tree of a vector."""
        return tree_unflatten(list(zip(self._names, self._split(vector), strict=True)))


def _aligned(size: int) -> int:
    """The next multiple of `_ALIGNED`."""
    return size + -size % _ALIGNED


def _end_to_end(arrays: Sequence[mx.array]) -> mx.array:
    parts = []
    for array in arrays:
        missing = _aligned(array.size) - array.size
        parts += [array.reshape(-1), mx.zeros((missing,))] if missing else [array.reshape(-1)]
    return mx.concatenate(parts)


def _consecutive(start: int, shape: tuple[int, ...]) -> np.ndarray:
    return start + np.arange(math.prod(shape)).reshape(shape)


class _NormedRows(NamedTuple):
    """Where the rows that are normed lie in the vector.

    Attributes:
        index: `(R, W)`, of their elements; past a row's end that of the constant zero.
        elements: how many they are.
        folded: elements of the folded vector, with the zero.
    """

    index: np.ndarray
    elements: int
    folded: int


def _gatherer(
    rows: _NormedRows, index: np.ndarray, scales: np.ndarray, shapes: list[Any], ends: list[int]
) -> Any:
    """The vector to the arrays of given shapes, weight norm and all.

    The gradient is one gather each way as well: MLX's own of `take` adds up one element at a time,
    and one of many slices fills and adds up whole vectors.

    Args:
        index, scales: of the arrays' elements in the folded vector, the zero last.
    """
    count, elements = len(rows.index), rows.elements
    # Where the elements of the folded vector lie once the rows are a matrix.
    places = np.arange(rows.folded) - elements + rows.index.size
    is_own = rows.index < elements
    places[rows.index[is_own]] = np.flatnonzero(is_own)
    joined, inverse = places[index], np.full(rows.index.size + rows.folded - elements, -1)
    inverse[joined] = np.arange(len(joined))
    inverse[inverse < 0] = len(joined) - 1  # of the zero: its own gradient is nobody's
    # Of the vector's elements among those of the matrix, the lengths and the rest.
    places = np.concatenate([places[:elements], np.arange(rows.index.size, len(inverse) + count)])
    spread, gather, back, order = (
        mx.array(part.astype(np.int32)) for part in (rows.index, joined, inverse, places)
    )
    scaled = mx.array(scales.astype(np.float32))

    def forward(vector: mx.array) -> tuple[mx.array, ...]:
        parts, kept = vector, ()
        if count:
            v = vector[spread]
            length = mx.sqrt(mx.sum(v * v, axis=1, keepdims=True))
            ratio = vector[elements : elements + count, None] / length
            parts = mx.concatenate([(v * ratio).reshape(-1), vector[elements + count :]])
            kept = (v, length, ratio)
        parts = mx.split(parts[gather] * scaled, ends)[:-1]
        return *(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)), *kept

    def gradient(primal: Any, cotangents: Any, outputs: Any) -> mx.array:
        own = cotangents[: len(shapes)]
        joined = mx.concatenate([*(c.reshape(-1) for c in own), mx.zeros((1,))])
        joined = (joined * scaled)[back]
        if not count:
            return joined
        (v, length, ratio), size = outputs[len(shapes) :], spread.size
        c = joined[:size].reshape(v.shape)
        along = mx.sum(c * v, axis=1, keepdims=True) / length
        to_v = ratio * (c - v * (along / length))
        return mx.concatenate([to_v.reshape(-1), along.reshape(-1), joined[size:]])[order]

    function = custom_vjp(forward, gradient)
    return lambda vector: function(vector)[: len(shapes)]
