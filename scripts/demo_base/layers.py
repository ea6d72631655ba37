"""Functions whose forward and gradient are few kernels, exact but for rounding.

MLX launches a kernel for nearly every operation, and makes several of the gradient of one. Axes:
B batch, T time, C channels in, O channels out, K kernel taps, H heads, N samples.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_vits.nn import conv, planar_conv
from mlx_vits.nn.gradients import with_gradient


def convolve(
    x: mx.array, weight: mx.array, stride: int = 1, padding: int = 0, dilation: int = 1
) -> mx.array:
    """`(B, T, C)` with `(O, K, C)`, as `mlx_vits.nn.conv.conv1d`.

    On CUDA MLX copies every window of the input for the gradient of a weight, unless the
    convolution is dilated: then cuDNN computes it, as it does here of any but those of one channel.
    """
    channels = min(weight.shape[0], weight.shape[2])
    if conv._chosen() != "planar" or weight.shape[1] == 1 or channels == 1:
        return conv.conv1d(x, weight, stride=stride, padding=padding, dilation=dilation)
    return planar_conv.conv1d(x, weight, stride, padding, dilation)


def leaky_relu(x: mx.array, slope: float) -> mx.array:
    """As `mlx_vits.nn.activations.leaky_relu`."""
    return _leaky_relu(slope)(x)[0]


@cache
def _leaky_relu(slope: float) -> Any:
    def forward(x: mx.array) -> tuple[mx.array, mx.array]:
        slopes = mx.maximum(mx.sign(x), slope)
        return x * slopes, slopes

    def gradient(primal: Any, cotangents: Any, outputs: Any) -> mx.array:
        return cotangents[0] * outputs[1]

    return with_gradient(forward, gradient)


def masked_relu(x: mx.array, mask: mx.array) -> mx.array:
    """`x` above 0, and 0 elsewhere and where the mask is 0, which holds nothing but 0 and 1."""

    def gradient(primal: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent * mx.sign(output)

    return with_gradient(lambda x: mx.maximum(x, 0) * mask, gradient)(x)


def gelu(x: mx.array) -> mx.array:
    """As `nn.gelu`."""
    return _gelu(x)[0]


def _gelu_forward(x: mx.array) -> tuple[mx.array, mx.array]:
    share = 0.5 + 0.5 * mx.erf(x * 0.5**0.5)
    return x * share, share


def _gelu_gradient(x: mx.array, cotangents: Any, outputs: Any) -> mx.array:
    density = mx.exp(mx.square(x) * -0.5) * (2 * np.pi) ** -0.5
    return cotangents[0] * (outputs[1] + x * density)


_gelu = with_gradient(_gelu_forward, _gelu_gradient)


def scale_gradient(x: mx.array, by: float | mx.array) -> mx.array:
    """x, with its gradient times `by`."""
    return with_gradient(lambda x: x, lambda primal, cotangent, output: cotangent * by)(x)


def heads(x: mx.array, parts: int, count: int) -> list[mx.array]:
    """`(B, T, parts * H * D)` to as many `(B, H, T, D)`, H = `count`.

    In one piece: where it is not, a product on CUDA copies it first, each product again.
    """
    batch, length, _ = x.shape
    x = x.reshape(batch, length, parts, count, -1).transpose(2, 0, 3, 1, 4)
    return [part.squeeze(0) for part in mx.split(mx.contiguous(x), parts)]


def join(x: mx.array) -> mx.array:
    """`(B, H, T, D)` to `(B, T, H * D)`; the gradient as `heads` has it."""
    batch, count, length, _ = x.shape

    def gradient(primal: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        return heads(cotangent, 1, count)[0]

    return with_gradient(lambda x: x.swapaxes(1, 2).reshape(batch, length, -1), gradient)(x)


def band_to_square(band: mx.array) -> mx.array:
    """`(B, H, T, 2 W + 2)`, one column a relative position and a last one of 0, to `(B, H, T, T)`.

    Column j - i + W of row i becomes column j; beyond the band is 0.
    """
    length, reach = band.shape[2], band.shape[3] // 2 - 1
    return _moved(length, reach)[0](band)


def square_to_band(square: mx.array, reach: int) -> mx.array:
    """`(B, H, T, T)` to `(B, H, T, 2 W + 2)`, W = `reach`: the inverse, 0 beyond the ends."""
    return _moved(square.shape[2], reach)[1](square)


@cache
def _moved(length: int, reach: int) -> tuple[Any, Any]:
    """Both ways for T = `length`: the gradient of one gather is the other."""
    row, column = np.arange(length)[:, None], np.arange(2 * reach + 2)
    near = np.arange(length) - row + reach
    near = np.where((near < 0) | (near > 2 * reach), 2 * reach + 1, near)
    there = row + column - reach
    is_there = (there >= 0) & (there < length) & (column <= 2 * reach)
    into_square = mx.array(near.astype(np.int32))
    into_band = mx.array(np.where(is_there, there, 0).astype(np.int32))
    known = mx.array(is_there.astype(np.float32))

    def along(x: mx.array, index: mx.array) -> mx.array:
        return mx.take_along_axis(x, mx.broadcast_to(index, (*x.shape[:2], *index.shape)), axis=-1)

    def to_square(band: mx.array) -> mx.array:
        return along(band, into_square)

    def to_band(square: mx.array) -> mx.array:
        return along(square, into_band) * known

    return (
        with_gradient(to_square, lambda primal, cotangent, output: to_band(cotangent)),
        with_gradient(to_band, lambda primal, cotangent, output: to_square(cotangent)),
    )


def frames_of(wav: mx.array, size: int, hop: int) -> mx.array:
    """`(B, N)` to all frames of `size` samples that lie within it, `(B, T, size)`."""
    return _framing(size, hop)(wav)


@cache
def _framing(size: int, hop: int) -> Any:
    hops = -(-size // hop)

    def forward(wav: mx.array) -> mx.array:
        batch, samples = wav.shape
        frames = (samples - size) // hop + 1
        return mx.as_strided(wav, (batch, frames, size), (samples, hop, 1))

    def gradient(wav: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        # Every `hops`-th frame lies beside the next: so many rows, each a hop further on.
        batch, frames, _ = cotangent.shape
        rest = [(0, 0), (0, -frames % hops), (0, hops * hop - size)]
        x = mx.pad(cotangent, rest).reshape(batch, -1, hops, hops * hop).swapaxes(1, 2)
        x = mx.pad(x.reshape(batch, hops, -1), [(0, 0), (0, 0), (0, hops * hop)])
        length = x.shape[2] - hop
        x = mx.as_strided(x, (batch, hops, length), (hops * (length + hop), length, 1))
        x, missing = mx.sum(x, axis=1), wav.shape[1] - length
        return mx.pad(x, [(0, 0), (0, missing)]) if missing > 0 else x[:, : wav.shape[1]]

    return with_gradient(forward, gradient)


def reflected(wav: mx.array, reach: int) -> mx.array:
    """`(B, N)` with so many samples mirrored at both ends."""
    samples = wav.shape[1]

    def forward(wav: mx.array) -> mx.array:
        left, right = wav[:, 1 : reach + 1][:, ::-1], wav[:, -reach - 1 : -1][:, ::-1]
        return mx.concatenate([left, wav, right], axis=1)

    def gradient(primal: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        left, own, right = mx.split(cotangent, [reach, reach + samples], axis=1)
        rest = samples - 1 - reach
        left = mx.pad(left[:, ::-1], [(0, 0), (1, rest)])
        return own + left + mx.pad(right[:, ::-1], [(0, 0), (rest, 1)])

    return with_gradient(forward, gradient)(wav)


def magnitude(frames: mx.array, window: mx.array, floor: float) -> mx.array:
    """`(B, T, W)` under a window `(W,)` to the magnitudes of its spectrum `(B, T, W / 2 + 1)`.

    Args:
        floor: added to each power.
    """
    size = frames.shape[-1]
    weights = np.full(size // 2 + 1, size / 2, np.float32)
    weights[[0, -1]] = size  # the two bins that have no mirror

    def forward(frames: mx.array) -> tuple[mx.array, mx.array]:
        spectrum = mx.fft.rfft(frames * window, axis=-1)
        power = mx.square(mx.real(spectrum)) + mx.square(mx.imag(spectrum))
        return mx.sqrt(power + floor), spectrum

    def gradient(primal: Any, cotangents: Any, outputs: Any) -> mx.array:
        share = cotangents[0] / outputs[0] * mx.array(weights)
        return mx.fft.irfft(share * outputs[1], n=size, axis=-1) * window

    return with_gradient(forward, gradient)(frames)[0]
