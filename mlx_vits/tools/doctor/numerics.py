"""Every kind of operation that training uses, on this machine's device against plain CPU ones.

Voices trained through another framework's GPU backend have come out audibly worse because single
gradients were wrong. So each kind is computed twice from the same numbers: as training computes it
here, and on the CPU with MLX's own convolutions, which are plain loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_vits import accel
from mlx_vits.audio.spectrogram import mel_spectrogram
from mlx_vits.config import DataSection
from mlx_vits.nn.attention import MultiHeadAttention
from mlx_vits.nn.ops import conv1d, conv_transpose1d
from mlx_vits.tools.machine import is_cuda, uses_tf32

FP32_TOLERANCE = 1e-4
# Products of 10-bit mantissas are off by up to 5e-4 each; the sums average much of it out.
TF32_TOLERANCE = 5e-3

Arrays = dict[str, mx.array]


class Check(NamedTuple):
    """One kind of operation.

    Attributes:
        name: what it is, in words.
        run: computes its value and its gradients from fixed random numbers; float32 arrays by name.
        plain: computes the same without MLX; where not given, `run` on the CPU with MLX's own
            convolutions.
    """

    name: str
    run: Callable[[], Arrays]
    plain: Callable[[], Mapping[str, np.ndarray]] | None = None


class Difference(NamedTuple):
    """How far a kind is off here.

    Attributes:
        name: of the check.
        worst: largest difference of any of its arrays, as a share of that array's largest entry;
            infinite where a number is not finite or the operation failed.
        array: which array that was: "value", or what the gradient is of.
        error: the exception in words where the operation could not be run, else "".
    """

    name: str
    worst: float
    array: str
    error: str = ""


def tolerance() -> float:
    """Share of an array's largest entry that a difference may reach on the default device."""
    return TF32_TOLERANCE if is_cuda() and uses_tf32() else FP32_TOLERANCE


def compare(checks: tuple[Check, ...] | None = None) -> list[Difference]:
    """Run the checks on the default device and on the CPU.

    Args:
        checks: `all_checks()` where not given.

    Returns:
        One difference a check, in their order.
    """
    return [_difference(check) for check in (all_checks() if checks is None else checks)]


def _difference(check: Check) -> Difference:
    expected: Mapping[str, mx.array | np.ndarray]
    if check.plain is not None:
        expected = check.plain()
    else:
        with mx.stream(mx.cpu), accel.use("off"):
            expected = check.run()
            mx.eval(expected)
    try:
        found = check.run()
        mx.eval(found)
    except (RuntimeError, ValueError) as error:
        return Difference(check.name, float("inf"), "", " ".join(str(error).split()))
    shares = {name: _share(found[name], expected[name]) for name in expected}
    worst = max(shares, key=lambda name: shares[name])
    return Difference(check.name, shares[worst], worst)


def _share(found: mx.array, expected: mx.array | np.ndarray) -> float:
    a, b = np.array(found, dtype=np.float64), np.array(expected, dtype=np.float64)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30))


def all_checks() -> tuple[Check, ...]:
    """Every kind of convolution of the two networks, and what else has a gradient of its own."""
    return (
        Check("matrix product", _product, _plain_product),
        *(Check(name, partial(_convolution, *shape)) for name, shape in _CONVOLUTIONS.items()),
        Check("weight normalisation", _weight_norm),
        Check("attention", _attention),
        Check("embedding", _embedding),
        Check("mel spectrogram", _mel),
    )


def _normal(seed: int, *shape: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def _with_gradients(function: Callable[..., mx.array], inputs: dict[str, mx.array]) -> Arrays:
    """The value, and the gradients of its product with a fixed random array."""
    arrays = list(inputs.values())
    value = function(*arrays)
    _, gradients = mx.vjp(lambda *xs: [function(*xs)], arrays, [_normal(99, *value.shape)])
    return {"value": value, **dict(zip(inputs, gradients, strict=True))}


_FACTORS = ((150, 333), (333, 190))


def _product() -> Arrays:
    a, b = (_normal(20 + k, *shape) for k, shape in enumerate(_FACTORS))
    return _with_gradients(lambda a, b: a @ b, {"left": a, "right": b})


def _plain_product() -> dict[str, np.ndarray]:
    """In double precision, by numpy: on a CPU the other checks share MLX's products."""
    a, b = (np.array(_normal(20 + k, *s), dtype=np.float64) for k, s in enumerate(_FACTORS))
    value = a @ b
    weights = np.array(_normal(99, *value.shape), dtype=np.float64)
    return {"value": value, "left": weights @ b.T, "right": a.T @ weights}


# Input and output channels, kernel size, options.
_CONVOLUTIONS: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "convolution": (32, 48, 7, {"padding": 3}),
    "pointwise convolution": (32, 48, 1, {}),
    "dilated convolution": (32, 32, 3, {"padding": 5, "dilation": 5}),
    "narrow convolution": (8, 1, 7, {"padding": 3}),
    "strided convolution": (16, 32, 5, {"stride": 3, "padding": 2}),
    "grouped convolution": (64, 64, 41, {"padding": 20, "groups": 16}),
    "grouped strided convolution": (16, 64, 41, {"stride": 4, "padding": 20, "groups": 4}),
    "transposed convolution, x2": (32, 16, 4, {"upsampling": 2}),
    "transposed convolution, x10": (32, 16, 16, {"upsampling": 10}),
}


def _convolution(channels: int, outputs: int, kernel: int, options: dict[str, int]) -> Arrays:
    geometry = dict(options)
    groups, rate = geometry.get("groups", 1), geometry.pop("upsampling", None)

    def run(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        if rate is None:
            return conv1d(x, weight, bias, **geometry)
        return conv_transpose1d(x, weight, bias, stride=rate, padding=(kernel - rate) // 2)

    inputs = {
        "input": _normal(0, 2, 203 if rate is None else 41, channels),
        "weight": _normal(1, outputs, kernel, channels // groups),
        "bias": _normal(2, outputs),
    }
    return _with_gradients(run, inputs)


def _weight_norm() -> Arrays:
    def run(x: mx.array, v: mx.array, g: mx.array) -> mx.array:
        norm = mx.sqrt(mx.sum(mx.square(v), axis=(1, 2), keepdims=True))
        return conv1d(x, v * (g / norm), None, padding=2)

    inputs = {
        "input": _normal(6, 2, 64, 16),
        "weight_v": _normal(7, 24, 5, 16),
        "weight_g": _normal(8, 24, 1, 1),
    }
    return _with_gradients(run, inputs)


def _attention() -> Arrays:
    """Two heads with relative positions, the second clip shorter."""
    layer = MultiHeadAttention(32, 2, window_size=4)
    parameters: Any = tree_flatten(layer.parameters())
    layer.load_weights([(name, 0.2 * _normal(9, *array.shape)) for name, array in parameters])
    there = mx.array(np.arange(24)[None] < np.array([[24], [17]])).astype(mx.float32)
    mask = there[:, None, :, None] * there[:, None, None, :]

    def run(x: mx.array, position: mx.array) -> mx.array:
        layer.emb_rel_k = position
        return layer(x, x, mask)

    position = 0.2 * _normal(14, *layer.emb_rel_k.shape)
    return _with_gradients(run, {"input": _normal(10, 2, 24, 32), "position": position})


def _embedding() -> Arrays:
    ids = mx.array(np.random.default_rng(11).integers(0, 20, (3, 50)).astype(np.int32))
    return _with_gradients(lambda table: table[ids], {"table": _normal(12, 20, 16)})


def _mel() -> Arrays:
    data = DataSection()
    return _with_gradients(
        lambda wav: mel_spectrogram(wav, data), {"waveform": 0.1 * _normal(13, 2, 6400)}
    )
