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
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_vits.nn.weight_norm import fold_rows

ZERO = -1  # in an index: no weight of the net, but the constant 0
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

    def add(self, name: str, index: np.ndarray) -> None:
        """Names a layer's weight: indices from `weights` in the layout wanted, or `ZERO`."""
        self._names.append(name)
        self._indices.append(np.where(index == ZERO, self._zero, index).astype(np.int32))

    def finish(self) -> None:
        """Ends the additions.

        Raises:
            ValueError: a weight of the net is used twice or not at all.
        """
        index = np.concatenate([*(i.ravel() for i in self._indices), [self._zero]]).astype(np.int32)
        counts = np.bincount(index, minlength=self._zero + 1)[: self._zero]
        if (counts != 1).any():
            wrong = [n for n, places in self.weights.items() if (counts[places] != 1).any()]
            raise ValueError(f"not used exactly once: {', '.join(wrong)}")
        inverse = np.zeros(self._zero + 1, np.int32)
        inverse[index] = np.arange(len(index))
        shapes = [index.shape for index in self._indices]
        ends = list(itertools.accumulate(index.size for index in self._indices))
        self._gather = _gatherer(mx.array(index), mx.array(inverse), shapes, ends)

    def __call__(self, vector: mx.array) -> dict[str, mx.array]:
        """The layers' weights by the names that `add` gave them."""
        return dict(zip(self._names, self._gather(self._fold(vector)), strict=True))

    def _fold(self, vector: mx.array) -> mx.array:
        """Weight norm: directions and lengths become weights."""
        if not self._blocks:
            return vector
        directions, lengths, rest = mx.split(vector, self._ends)
        rows = list(itertools.accumulate(rows for rows, _ in self._blocks))[:-1]
        sizes = list(itertools.accumulate(rows * width for rows, width in self._blocks))[:-1]
        pieces = zip(
            mx.split(directions, sizes), mx.split(lengths, rows), self._blocks, strict=True
        )
        folded = [fold_rows(g[:, None], v.reshape(block)).reshape(-1) for v, g, block in pieces]
        return mx.concatenate([*folded, rest])

    def pack(self, tensors: Mapping[str, Any]) -> mx.array:
        """The vector of tensors in MLX's axes."""
        vector = np.zeros(self.size, np.float32)
        for name, places in self.places.items():
            vector[places] = np.array(tensors[name], dtype=np.float32)
        return mx.array(vector)

    def unpack(self, vector: mx.array) -> dict[str, mx.array]:
        """The tensors of a vector, in MLX's axes."""
        flat = np.array(vector)
        return {name: mx.array(flat[places]) for name, places in self.places.items()}


def _consecutive(start: int, shape: tuple[int, ...]) -> np.ndarray:
    return start + np.arange(math.prod(shape)).reshape(shape)


def _gatherer(index: mx.array, inverse: mx.array, shapes: list[Any], ends: list[int]) -> Any:
    """Folded vector to the arrays of given shapes; its gradient is a gather as well.

    MLX's own gradient of `take` adds up one element at a time.
    """

    def forward(folded: mx.array) -> tuple[mx.array, ...]:
        parts = mx.split(mx.take(folded, index), ends)[:-1]
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    def gradient(primal: Any, cotangents: Any, outputs: Any) -> mx.array:
        # The last place is that of the constant: its own gradient is nobody's.
        joined = mx.concatenate([*(c.reshape(-1) for c in cotangents), mx.zeros((1,))])
        return mx.take(joined, inverse)

    function: Any = mx.custom_function(forward)
    function.vjp(gradient)
    return function
