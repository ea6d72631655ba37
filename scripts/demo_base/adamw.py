"""AdamW and a running mean on one vector of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

_MEAN_WARMUP = 9.0  # the running mean follows this closely at first


class Net(NamedTuple):
    """A net's weights and what its optimizer keeps, each a vector of all of them.

    Attributes:
        weights: the present ones.
        m, v: AdamW's moments.
        mean: a running mean of the weights.
    """

    weights: mx.array
    m: mx.array
    v: mx.array
    mean: mx.array


class AdamW(NamedTuple):
    """What does not change from update to update.

    Attributes:
        betas, eps, weight_decay: AdamW's; the decay is of every weight.
        mean_decay: of the running mean.
    """

    betas: Sequence[float]
    eps: float
    weight_decay: float
    mean_decay: float

    def factors(self, rate: float, count: int) -> list[float]:
        """Of the update number `count`, counted from 1, at a learning rate; what `update` takes."""
        c1, c2 = (1 - beta**count for beta in self.betas)
        decay = min(self.mean_decay, count / (count + _MEAN_WARMUP))
        return [rate * c2**0.5 / c1, self.eps * c2**0.5, 1 - rate * self.weight_decay, decay]

    def update(self, net: Net, gradient: mx.array, factors: Sequence[float] | mx.array) -> Net:
        """AdamW with bias correction, as PyTorch's and MLX's.

        Args:
            factors: numbers, or an array of them where they must be no constants of a compiled
                function.
        """
        rate, eps, kept, decay = (factors[i] for i in range(4))
        b1, b2 = self.betas
        m = b1 * net.m + (1 - b1) * gradient
        v = b2 * net.v + (1 - b2) * mx.square(gradient)
        # The corrections of both moments, moved to where they are single numbers.
        weights = kept * net.weights - rate * m / (mx.sqrt(v) + eps)
        return Net(weights, m, v, decay * net.mean + (1 - decay) * weights)


def start(weights: mx.array) -> Net:
    """A net that has seen no update."""
    return Net(weights, mx.zeros_like(weights), mx.zeros_like(weights), weights)


def norm(vector: mx.array, width: int = 1024) -> mx.array:
    """Root of the sum of squares, in rows: one long fp32 sum loses digits."""
    rows = mx.pad(vector, (0, -vector.size % width)).reshape(-1, width)
    return mx.sqrt(mx.sum(mx.sum(mx.square(rows), axis=1)))
