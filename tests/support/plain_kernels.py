"""What the kernels of `accel/cuda` compute, in MLX's own operations.

`test_cuda_kernels.py` holds the kernels' sources to these; the blocks that use the kernels are
tested on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_vits.accel.cuda import many, rows


def leaky_relu(
    x: mx.array, bias: mx.array, slope: float, shape: tuple[int, ...] | None = None
) -> mx.array:
    return mx.maximum(x + bias, slope * (x + bias)).reshape(shape or x.shape)


def leaky_relu_gradient(
    cotangent: mx.array,
    output: mx.array,
    slope: float,
    count: int = 1,
    shape: tuple[int, ...] | None = None,
) -> mx.array:
    y = cotangent * mx.where(output > 0, 1.0, slope) / count
    return y.reshape(shape or output.shape)


def biased_sum(x: mx.array, y: mx.array, bias: mx.array) -> mx.array:
    return x + (y.reshape(x.shape) + bias)


def sum_and_leaky_relu(
    x: mx.array, y: mx.array, bias: mx.array, slope: float, shape: tuple[int, ...] | None = None
) -> tuple[mx.array, mx.array]:
    y = y.reshape(shape or y.shape)
    return x + (y + bias), leaky_relu(x + y, bias, slope)


def sum_and_leaky_relu_gradient(
    of_sum: mx.array,
    of_leaky: mx.array,
    sum_: mx.array,
    slope: float,
    shape: tuple[int, ...] | None = None,
) -> mx.array:
    return (of_sum + leaky_relu_gradient(of_leaky, sum_, slope)).reshape(shape or sum_.shape)


def mean(arrays: Sequence[mx.array], slope: float) -> mx.array:
    return leaky_relu(mx.mean(mx.stack(list(arrays)), axis=0), mx.array(0.0), slope)


def gate(
    x: mx.array, bias: mx.array, condition: mx.array, shape: tuple[int, ...] | None = None
) -> mx.array:
    a, b = _halves_of_sum(x, bias, condition)
    y = mx.tanh(a) * mx.sigmoid(b)
    return y.reshape(shape or y.shape)


def gate_gradient(
    x: mx.array,
    bias: mx.array,
    condition: mx.array,
    cotangent: mx.array,
    shape: tuple[int, ...] | None = None,
) -> mx.array:
    a, b = _halves_of_sum(x, bias, condition)
    a, b = mx.tanh(a), mx.sigmoid(b)
    cotangent = cotangent.reshape(a.shape)
    parts = [cotangent * b * (1 - a * a), cotangent * a * b * (1 - b)]
    return mx.concatenate(parts, axis=-1).reshape(shape or x.shape)


def _halves_of_sum(x: mx.array, bias: mx.array, condition: mx.array) -> list[mx.array]:
    return mx.split(x.reshape(len(x), *x.shape[-2:]) + bias + condition, 2, axis=-1)


def residual(
    x: mx.array, y: mx.array, mask: mx.array, total: mx.array
) -> tuple[mx.array, mx.array]:
    a, b = mx.split(y.reshape(*x.shape[:-1], -1), 2, axis=-1)
    return (x + a) * mask, total + b


def residual_gradient(
    cotangent: mx.array, of_total: mx.array, mask: mx.array, shape: tuple[int, ...]
) -> tuple[mx.array, mx.array]:
    of_y = mx.concatenate([cotangent * mask, of_total], axis=-1)
    return cotangent * mask, of_y.reshape(shape)


def widen(band: mx.array) -> mx.array:
    length, width = band.shape[2:]
    picks = _picks(length, width // 2)
    return mx.einsum("bhiw,ijw->bhij", band, picks)


def narrow(square: mx.array, reach: int) -> mx.array:
    return mx.einsum("bhij,ijw->bhiw", square, _picks(square.shape[2], reach))


def _picks(length: int, reach: int) -> mx.array:
    offset = mx.arange(length)[None] - mx.arange(length)[:, None] + reach
    return (offset[..., None] == mx.arange(2 * reach + 1)).astype(mx.float32)


def attention(scores: mx.array, band: mx.array, seen: mx.array, hidden: float) -> mx.array:
    return mx.softmax(mx.where(seen == 0, hidden, scores + widen(band)), axis=-1)


def attention_gradient(
    cotangent: mx.array, weights: mx.array, seen: mx.array, band: mx.array
) -> tuple[mx.array, mx.array]:
    total = mx.sum(cotangent * weights, axis=-1, keepdims=True)
    of_scores = mx.where(seen == 0, 0.0, weights * (cotangent - total))
    return of_scores, narrow(of_scores, band.shape[-1] // 2)


def stacked(first: mx.array, second: mx.array, third: mx.array) -> mx.array:
    return mx.concatenate([first, second, third])


def heads(x: mx.array, count: int, scale: float) -> mx.array:
    batch, length, channels = x.shape
    parts = x.reshape(batch, length, 3, count, channels // 3 // count).transpose(2, 0, 3, 1, 4)
    return mx.concatenate([scale * parts[:1], parts[1:]])


def heads_gradient(query: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    parts = mx.stack([scale * query, k, v]).transpose(1, 3, 0, 2, 4)
    return parts.reshape(query.shape[0] * query.shape[2], -1)


def windows(
    x: mx.array, kernel: int, steps: int, stride: int, dilation: int, padding: int
) -> mx.array:
    x = x.reshape(len(x), *x.shape[-2:])
    padded = mx.pad(x, [(0, 0), (padding, padding + stride + dilation * kernel), (0, 0)])
    places = mx.arange(steps)[:, None] * stride + mx.arange(kernel) * dilation
    return padded[:, places].reshape(-1, kernel * x.shape[2])


def dropout(
    x: mx.array,
    mask: mx.array,
    p: float,
    key: mx.array,
    to: mx.array | None = None,
    bias: mx.array | None = None,
    shape: tuple[int, ...] | None = None,
) -> mx.array:
    x, mask = x.reshape(shape or x.shape), mask.reshape(-1, 1) if x.ndim == 2 else mask
    keep = mx.random.bernoulli(1 - p, x.shape, key=key)
    x = x if bias is None else x + bias
    dropped = mx.where(keep, x * mask / (1 - p), 0.0)
    return dropped if to is None else to + dropped


def fold(g: Sequence[mx.array], v: Sequence[mx.array]) -> tuple[list[mx.array], list[mx.array]]:
    norms = [mx.sqrt(_sum_of_rows(one * one)) for one in v]
    return [b * (a / norm) for a, b, norm in zip(g, v, norms, strict=True)], norms


def fold_gradient(
    g: Sequence[mx.array],
    v: Sequence[mx.array],
    norms: Sequence[mx.array],
    cotangents: Sequence[mx.array],
) -> tuple[list[mx.array], list[mx.array]]:
    of_g = [_sum_of_rows(c * b) / n for b, n, c in zip(v, norms, cotangents, strict=True)]
    of_each = zip(g, v, norms, cotangents, of_g, strict=True)
    return of_g, [a / n * (c - b * (along / n)) for a, b, n, c, along in of_each]


def _sum_of_rows(x: mx.array) -> mx.array:
    return mx.sum(x, axis=list(range(1, x.ndim)), keepdims=True)


def distance_gradients(
    arrays: Sequence[mx.array],
    others: Sequence[mx.array],
    weights: Sequence[float],
    cotangent: mx.array,
) -> list[mx.array]:
    of_each = zip(arrays, others, weights, strict=True)
    return [mx.sign(y - x) * cotangent * weight for x, y, weight in of_each]


def sum_of_squares(
    arrays: Sequence[mx.array], targets: Sequence[float], weights: Sequence[float]
) -> mx.array:
    of_each = zip(arrays, targets, weights, strict=True)
    return sum(mx.sum(mx.square(a - target)) * weight for a, target, weight in of_each)


def square_gradients(
    arrays: Sequence[mx.array],
    targets: Sequence[float],
    weights: Sequence[float],
    cotangent: mx.array,
) -> list[mx.array]:
    of_each = zip(arrays, targets, weights, strict=True)
    return [2 * (a - target) * weight * cotangent for a, target, weight in of_each]


def pull(
    v: Sequence[mx.array],
    origins: Sequence[mx.array],
    grads: Sequence[mx.array],
    g: Sequence[mx.array | None],
    grads_g: Sequence[mx.array | None],
    scales: Sequence[float],
) -> rows.Pull:
    loss, squares, of_g, of_v = mx.array(0.0), mx.array(0.0), [], []
    layers = zip(v, origins, grads, g, grads_g, scales, strict=True)
    for direction, origin, grad, norms, grad_g, scale in layers:
        if norms is None or grad_g is None:
            loss += scale * mx.sum(mx.square(direction - origin))
            own = [2 * scale * (direction - origin)]
            of_g.append(mx.zeros((1,)))
        else:
            size = norms.reshape(-1, *[1] * (direction.ndim - 1))
            ((weight,), lengths) = fold([size], [direction])
            loss += scale * mx.sum(mx.square(weight - origin))
            of_weight = [2 * scale * (weight - origin)]
            ((of_size,), (of_direction,)) = fold_gradient([size], [direction], lengths, of_weight)
            own = [of_direction, of_size]
            of_g.append(grad_g + of_size.reshape(norms.shape))
        of_v.append(grad + own[0])
        squares += sum(mx.sum(mx.square(one)) for one in own)
    return rows.Pull(loss, mx.sqrt(squares), of_g, of_v)


def sum_of_products(arrays: Sequence[mx.array], others: Sequence[mx.array]) -> mx.array:
    return sum(mx.sum(a * b) for a, b in zip(arrays, others, strict=True))


def sum_of_distances(
    arrays: Sequence[mx.array], others: Sequence[mx.array], weights: Sequence[float]
) -> mx.array:
    of_each = zip(arrays, others, weights, strict=True)
    return sum(mx.sum(mx.abs(a - b)) * weight for a, b, weight in of_each)


def adamw(
    parameters: Sequence[mx.array],
    gradients: Sequence[mx.array],
    moments: Sequence[many.Moments],
    factors: mx.array,
    betas: tuple[float, float],
    eps: float,
) -> list[tuple[mx.array, many.Moments]]:
    (b1, b2), found = betas, []
    for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p * factors[0] - factors[1] * m / (mx.sqrt(v) * factors[2] + eps)
        found.append((p, many.Moments(m, v)))
    return found
