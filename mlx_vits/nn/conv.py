"""Every convolution of the project, behind one interface, formulated for the backend at hand.

Axes: N batch, T time, C channels in, O channels out, K kernel taps. Activations are `(N, T, C)`.
Weights are in MLX's own layout: `(O, K, C / groups)`, transposed convolution `(O / groups, K, C)`.

On Metal and CUDA these are MLX's own convolutions. MLX's CPU backend has no fast path for
dilated, transposed and grouped ones (a naive loop: one dilated convolution of the decoder takes
735 ms where PyTorch takes 5), so on CPU all of them reduce to one primitive, a stride-1 convolution
as an unfolded matrix product with its gradient written out:

* a stride s folds s time steps into the channels first (space to depth);
* a transposed convolution computes its s output phases as channels, and unfolds them
  (sub-pixel convolution, Shi et al. 2016, arXiv:1609.05158), without multiplying inserted zeros;
* groups become the batch of a batched matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx

BACKENDS = ("auto", "native", "matmul")
_backend = "auto"


@contextmanager
def conv_backend(name: str) -> Iterator[None]:
    """Chooses the formulation within a `with` block.

    Args:
        name: "native" (MLX's convolutions), "matmul" (the CPU formulation) or "auto" (by device).
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"conv backend {name!r} is not one of {BACKENDS}")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def _is_native() -> bool:
    if _backend == "auto":
        return mx.default_device().type == mx.DeviceType.gpu
    return _backend == "native"


def conv1d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> mx.array:
    """1-D convolution (cross-correlation, zero padding), as `torch.nn.functional.conv1d`.

    Args:
        x: `(N, T, C)`.
        weight: `(O, K, C / groups)`.
        bias: `(O,)` or None.

    Returns:
        `(N, (T + 2 padding - dilation (K - 1) - 1) // stride + 1, O)`.
    """
    if weight.shape[1] == 1 and stride == 1 and padding == 0 and groups == 1:
        y = x @ weight[:, 0].T
    elif _is_native():
        y = mx.conv1d(x, weight, stride, padding, dilation, groups)
    else:
        y = _matmul_conv1d(x, weight, stride, padding, dilation, groups)
    return y if bias is None else y + bias


def conv_transpose1d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> mx.array:
    """1-D transposed convolution without output padding, as `torch.nn.functional.conv_transpose1d`.

    Args:
        x: `(N, T, C)`.
        weight: `(O / groups, K, C)`.
        bias: `(O,)` or None.

    Returns:
        `(N, (T - 1) stride + dilation (K - 1) + 1 - 2 padding, O)`.
    """
    pieces = zip(mx.split(x, groups, axis=-1), mx.split(weight, groups, axis=-1), strict=True)
    outputs = []
    for part, w in pieces:
        if _is_native():
            outputs.append(mx.conv_transpose1d(part, w, stride, padding, dilation))
        else:
            outputs.append(_matmul_conv_transpose1d(part, _dilate(w, dilation), stride, padding))
    y = outputs[0] if groups == 1 else mx.concatenate(outputs, axis=-1)
    return y if bias is None else y + bias


def _dilate(weight: mx.array, dilation: int) -> mx.array:
    """`(O, K, C)` to `(O, dilation (K - 1) + 1, C)`: zeros between the taps."""
    outputs, kernel, channels = weight.shape
    if dilation == 1:
        return weight
    spread = mx.pad(weight[:, :, None], [(0, 0), (0, 0), (0, dilation - 1), (0, 0)])
    return spread.reshape(outputs, -1, channels)[:, : dilation * (kernel - 1) + 1]


def _matmul_conv1d(
    x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int, groups: int
) -> mx.array:
    batch, length, channels = x.shape
    if stride > 1:
        weight, dilation = _dilate(weight, dilation), 1
    outputs, kernel, _ = weight.shape
    out_length = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    block = _block_steps(channels, outputs, kernel)
    if stride == groups == 1 and block > 1:
        return _blocked_conv1d(x, weight, padding, dilation, out_length, block)
    taps = -(-kernel // stride)
    # Padded to a whole number of strides; samples that no output sees are cut off.
    padded_length = (out_length + taps - 1) * stride if stride > 1 else length + 2 * padding
    right = padded_length - length - padding
    x = mx.pad(x[:, : length + min(right, 0)], [(0, 0), (padding, max(right, 0)), (0, 0)])

    # (groups, N, T / stride, stride * C / groups): time steps of one stride become channels.
    x = x.reshape(batch, padded_length, groups, channels // groups)
    x = x.transpose(2, 0, 1, 3).reshape(groups, batch, padded_length // stride, -1)
    # (groups, K, C / groups, O / groups), then taps and their channels in one axis.
    w = weight.reshape(groups, outputs // groups, kernel, channels // groups)
    w = mx.pad(w.transpose(0, 2, 3, 1), [(0, 0), (0, taps * stride - kernel), (0, 0), (0, 0)])
    w = w.reshape(groups, taps * x.shape[-1], outputs // groups)

    y = _unfolded_product(taps, dilation)(x, w)
    return y.transpose(1, 2, 0, 3).reshape(batch, out_length, outputs)


def _block_steps(channels: int, outputs: int, kernel: int) -> int:
    """Time steps to compute as one, so that a narrow layer's matrix product is not mostly copies.

    Measured on two cores: wide enough at 64 columns; kernels of 3 gain little beyond 4 steps.
    """
    wide = 64 // max(channels, outputs)
    return max(1, min(wide, 4 if kernel <= 3 else 16)) if kernel > 1 else 1


def _blocked_conv1d(
    x: mx.array, weight: mx.array, padding: int, dilation: int, out_length: int, block: int
) -> mx.array:
    """Stride 1 with `block` consecutive outputs of a phase as channels of one row.

    The weight becomes a block Toeplitz matrix; its zeros cost less than copying every window.
    """
    batch, length, channels = x.shape
    outputs, kernel, _ = weight.shape
    taps = -(-(block + kernel - 1) // block)
    span = block * dilation
    rows = -(-out_length // span)
    x = mx.pad(x, [(0, 0), (padding, max(0, (rows + taps - 1) * span - length - padding)), (0, 0)])
    x = x[:, : (rows + taps - 1) * span].reshape(batch, -1, block, dilation, channels)
    x = x.transpose(0, 3, 1, 2, 4).reshape(1, batch * dilation, -1, block * channels)
    y = _unfolded_product(taps, 1)(x, _toeplitz(weight, block, taps))
    y = y.reshape(batch, dilation, rows, block, outputs).transpose(0, 2, 3, 1, 4)
    return y.reshape(batch, rows * span, outputs)[:, :out_length]


def _toeplitz(weight: mx.array, block: int, taps: int) -> mx.array:
    """`(O, K, C)` to `(1, taps * block * C, block * O)`: entry (q, c), (r, o) is w[o, q - r, c].

    Rows of length L + 1 laid end to end and cut again at L shift row r by r.
    """
    outputs, kernel, channels = weight.shape
    length = taps * block
    w = mx.pad(weight.transpose(1, 2, 0), [(0, length + 1 - kernel), (0, 0), (0, 0)])
    w = mx.broadcast_to(w, (block, *w.shape)).reshape(-1, channels, outputs)
    w = w[: block * length].reshape(block, length, channels, outputs)
    return w.transpose(1, 2, 0, 3).reshape(1, length * channels, block * outputs)


def _matmul_conv_transpose1d(x: mx.array, weight: mx.array, stride: int, padding: int) -> mx.array:
    batch, length, channels = x.shape
    outputs, kernel, _ = weight.shape
    taps = -(-kernel // stride)
    out_length = (length - 1) * stride + kernel - 2 * padding
    # Output q * stride + r sums x[q - j] * w[j * stride + r] over the taps j.
    w = mx.pad(weight, [(0, 0), (0, taps * stride - kernel), (0, 0)])
    w = w.reshape(outputs, taps, stride, channels)[:, ::-1].transpose(1, 3, 2, 0)
    w = w.reshape(1, taps * channels, stride * outputs)
    x = mx.pad(x, [(0, 0), (taps - 1, taps - 1), (0, 0)])
    y = _unfolded_product(taps, 1)(x[None], w)
    return y.reshape(batch, -1, outputs)[:, padding : padding + out_length]


def _unfold(x: mx.array, taps: int, dilation: int) -> mx.array:
    """`(G, N, T, C)` to `(G, N * T_out, taps * C)`, every window of `taps` steps in a row."""
    groups, batch, length, channels = x.shape
    out_length = length - dilation * (taps - 1)
    if taps == 1:
        return x.reshape(groups, batch * out_length, channels)
    windows = mx.as_strided(
        mx.contiguous(x),
        (groups, batch, out_length, taps, channels),
        (batch * length * channels, length * channels, channels, dilation * channels, 1),
    )
    return windows.reshape(groups, batch * out_length, taps * channels)


def _fold(columns: mx.array, length: int, taps: int, dilation: int) -> mx.array:
    """Adjoint of `_unfold`: `(G, N, T_out, taps * C)` summed back into `(G, N, length, C)`."""
    out_length, channels = columns.shape[2], columns.shape[3] // taps
    total = mx.zeros((*columns.shape[:2], length, channels), columns.dtype)
    for tap, part in enumerate(mx.split(columns, taps, axis=-1)):
        start = tap * dilation
        around = [(0, 0), (0, 0), (start, length - out_length - start), (0, 0)]
        total = total + mx.pad(part, around)
    return total


@cache
def _unfolded_product(taps: int, dilation: int) -> Callable[[mx.array, mx.array], mx.array]:
    """The primitive: `(G, N, T, C)` with `(G, taps * C, O)` gives `(G, N, T_out, O)`."""

    def product(x: mx.array, w: mx.array) -> mx.array:
        groups, batch, length, _ = x.shape
        y = _unfold(x, taps, dilation) @ w
        return y.reshape(groups, batch, length - dilation * (taps - 1), w.shape[-1])

    if taps == 1:
        return product  # a plain matrix product: MLX's own gradient is as good

    def gradient(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array
    ) -> tuple[mx.array, mx.array]:
        x, w = primals
        groups, _, length, channels = x.shape
        outputs = w.shape[-1]
        rows = cotangent.reshape(groups, -1, outputs)
        grad_w = _unfold(x, taps, dilation).swapaxes(1, 2) @ rows
        if channels < outputs:
            columns = (rows @ w.swapaxes(1, 2)).reshape(*cotangent.shape[:3], -1)
            return _fold(columns, length, taps, dilation), grad_w
        # The same primitive on the padded cotangent, taps mirrored, channels exchanged.
        reach = dilation * (taps - 1)
        padded = mx.pad(cotangent, [(0, 0), (0, 0), (reach, reach), (0, 0)])
        mirrored = w.reshape(groups, taps, channels, outputs)[:, ::-1]
        mirrored = mirrored.swapaxes(2, 3).reshape(groups, taps * outputs, channels)
        return product(padded, mirrored), grad_w

    primitive: Any = mx.custom_function(product)
    primitive.vjp(gradient)
    return primitive
