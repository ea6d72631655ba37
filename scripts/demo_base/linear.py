"""Linear classifiers of frames: what features say of the phone, or of the speaker."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

_WEIGHT_DECAY = 1e-3


class LinearProbe(NamedTuple):
    """A classifier of features as they are.

    Attributes:
        weight: `(K, C)`.
        bias: `(K,)`.
    """

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, x: np.ndarray) -> np.ndarray:
        """`(N, C)` to `(N, K)`."""
        return x @ self.weight.T + self.bias


def fit_linear(
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    weights: np.ndarray | None = None,
) -> LinearProbe:
    """Multinomial logistic regression by AdamW on standardised features.

    Args:
        x: `(N, C)`.
        labels: `(N,)`.
        weights: `(N,)`, of each row; None for 1.
    """
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64) + 1e-5
    random, count = np.random.default_rng(seed), len(x)
    layer = nn.Linear(x.shape[1], classes)
    layer.update({name: mx.zeros_like(array) for name, array in layer.parameters().items()})
    batches = max(1, count // batch_size)
    rate = optim.cosine_decay(learning_rate, epochs * batches)
    optimizer = optim.AdamW(rate, weight_decay=_WEIGHT_DECAY, bias_correction=True)

    def loss_of(features: mx.array, label: mx.array, weight: mx.array) -> mx.array:
        losses = nn.losses.cross_entropy(layer(features), label)
        return mx.sum(losses * weight) / mx.sum(weight)

    gradient = nn.value_and_grad(layer, loss_of)
    for _ in range(epochs):
        for rows in np.array_split(random.permutation(count), batches):
            features = mx.array(((x[rows] - mean) / std).astype(np.float32))
            weight = np.ones(len(rows)) if weights is None else weights[rows]
            given = (mx.array(labels[rows].astype(np.int32)), mx.array(weight.astype(np.float32)))
            _, grads = gradient(features, *given)
            optimizer.update(layer, grads)
            mx.eval(layer.parameters(), optimizer.state)
    weight = np.array(layer.weight) / std
    bias = np.array(layer.bias) - weight @ mean
    return LinearProbe(weight.astype(np.float32), bias.astype(np.float32))
