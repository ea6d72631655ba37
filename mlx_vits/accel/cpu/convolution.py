"""Convolutions as matrix products, for MLX's CPU backend, whose own are naive loops.

A convolution and a transposed one are each other's adjoint, so three linear maps serve both:

* `_gather`: the convolution, x and w to y;
* `_scatter`: its adjoint in x, y and w to x, which is the transposed convolution;
* `_correlate`: its adjoint in w, x and y to w.

Each uses the cheapest of a few algorithms, as measured on one core (`make bench` measures them
together). None multiplies inserted zeros, except the last one for the padding of a kernel:

* *windows*: every window copied into a row (im2col), then one product.
* *taps*: no copy; one product per tap, accumulated over shifted views of all clips end to end. For
  narrow layers, where copying costs as much as multiplying.
* *columns*: one product gives every tap's contribution to x, summed with shifts (col2im).
* *phases*: one stride of steps becomes the channels of one row (sub-pixel convolution, Shi et al.
  2016, arXiv:1609.05158), then as windows.

Axes: G groups, N batch, T time of x, Y time of y, C channels of x in a group, O of y in a group,
K taps. Here x is `(G, N, T, C)`, y is `(G, N, Y, O)`, w is `(G, O, K, C)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from mlx_vits.accel.custom_vjp import custom_vjp

_FEW, _NARROW = 4, 128  # channels: windows are cheap below the first, taps up to the second
_MAX_BLOCKS = 4  # strides that a kernel may span to use columns
_WHOLE_STEPS = 32  # from this many channels on, steps are copied as blocks


class _Geometry(NamedTuple):
    stride: int
    padding: int
    dilation: int

    def reach(self, kernel: int) -> int:
        """Return the steps that a window spans after its first."""
        return self.dilation * (kernel - 1)


def conv1d(
    x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int, groups: int
) -> mx.array:
    """Convolve `(N, T, G C)` with `(G O, K, C)` to `(N, Y, G O)`; see `nn/ops.py`."""
    if stride > 1:
        weight, dilation = dilate(weight, dilation), 1
    function = _convolution(_Geometry(stride, padding, dilation))
    w = weight.reshape(groups, -1, *weight.shape[1:])
    return _join(function(_split(x, groups), w))


def conv_transpose1d(
    x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int
) -> mx.array:
    """Convolve `(N, Y, O)` with `(C, K, O)`, transposed, to `(N, T, C)`; see `nn/ops.py`.

    The axes are those of `_scatter`, whose input this x is, with one group.
    """
    weight = dilate(weight, dilation)
    function = _transposed(_Geometry(stride, padding, 1))
    return function(x[None], weight.swapaxes(0, 2)[None]).squeeze(0)


def dilate(weight: mx.array, dilation: int) -> mx.array:
    """Insert zeros between taps: `(O, K, C)` to `(O, dilation (K - 1) + 1, C)`."""
    outputs, kernel, channels = weight.shape
    if dilation == 1:
        return weight
    spread = mx.pad(weight[:, :, None], [(0, 0), (0, 0), (0, dilation - 1), (0, 0)])
    return spread.reshape(outputs, -1, channels)[:, : dilation * (kernel - 1) + 1]


def _split(x: mx.array, groups: int) -> mx.array:
    """Split groups: `(N, T, G C)` to `(G, N, T, C)`."""
    if groups == 1:
        return x[None]
    return x.reshape(*x.shape[:2], groups, -1).transpose(2, 0, 1, 3)


def _join(x: mx.array) -> mx.array:
    """Join groups: `(G, N, T, C)` to `(N, T, G C)`."""
    if x.shape[0] == 1:
        return x.squeeze(0)
    return x.transpose(1, 2, 0, 3).reshape(*x.shape[1:3], -1)


@cache
def _convolution(geometry: _Geometry) -> Callable[[mx.array, mx.array], mx.array]:
    def forward(x: mx.array, w: mx.array) -> mx.array:
        return _gather(x, w, geometry)

    def gradient(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array
    ) -> tuple[mx.array, mx.array]:
        x, w = primals
        grad_x = _scatter(cotangent, w, geometry, x.shape[2])
        return grad_x, _correlate(x, cotangent, w.shape[2], geometry)

    return custom_vjp(forward, gradient)


@cache
def _transposed(geometry: _Geometry) -> Callable[[mx.array, mx.array], mx.array]:
    def forward(y: mx.array, w: mx.array) -> mx.array:
        length = (
            (y.shape[2] - 1) * geometry.stride
            + geometry.reach(w.shape[2])
            + 1
            - 2 * geometry.padding
        )
        return _scatter(y, w, geometry, length)

    def gradient(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array
    ) -> tuple[mx.array, mx.array]:
        y, w = primals
        return _gather(cotangent, w, geometry), _correlate(cotangent, y, w.shape[2], geometry)

    return custom_vjp(forward, gradient)


def _gather(x: mx.array, w: mx.array, geometry: _Geometry) -> mx.array:
    """Convolve: `(G, N, T, C)` to `(G, N, Y, O)`."""
    groups, outputs, kernel, _ = w.shape
    x = _pad_or_crop(x, geometry.padding, geometry.padding)
    if geometry.stride == 1 and _uses_taps(groups, w.shape[-1], outputs):
        taps = mx.contiguous(w[0].swapaxes(0, 1)).swapaxes(1, 2)
        return _sum_of_taps(x, taps, geometry.dilation)
    rows, count = _windows(x, kernel, geometry)
    y = rows @ w.reshape(groups, outputs, -1).swapaxes(1, 2)
    return y.reshape(groups, -1, count, outputs)


def _scatter(y: mx.array, w: mx.array, geometry: _Geometry, length: int) -> mx.array:
    """Apply the adjoint of `_gather` in x: `(G, N, Y, O)` to `(G, N, length, C)`."""
    groups, outputs, kernel, channels = w.shape
    stride = geometry.stride
    if stride == 1 and _uses_taps(groups, outputs, channels):
        margin = geometry.reach(kernel) - geometry.padding
        mirrored = mx.contiguous(w[0, :, ::-1].swapaxes(0, 1))
        return _sum_of_taps(_pad_or_crop(y, margin, margin), mirrored, geometry.dilation)
    blocks = -(-kernel // stride)
    uses_columns = channels < outputs if stride == 1 else blocks <= _MAX_BLOCKS
    if uses_columns:
        columns = y.reshape(groups, -1, outputs) @ w.reshape(groups, outputs, -1)
        steps = _add_columns(columns.reshape(*y.shape[:3], -1), blocks, stride * channels, geometry)
    else:
        reach = geometry.dilation * (blocks - 1)
        rows, _ = _windows(
            _pad_or_crop(y, reach, reach), blocks, _Geometry(1, 0, geometry.dilation)
        )
        phases = mx.pad(w, [(0, 0), (0, 0), (0, blocks * stride - kernel), (0, 0)])
        phases = phases.reshape(groups, outputs, blocks, stride * channels)[:, :, ::-1]
        steps = rows @ phases.swapaxes(1, 2).reshape(groups, -1, stride * channels)
    steps = steps.reshape(groups, y.shape[1], -1, channels)
    return _pad_or_crop(steps, -geometry.padding, length + geometry.padding - steps.shape[2])


def _correlate(x: mx.array, y: mx.array, kernel: int, geometry: _Geometry) -> mx.array:
    """Apply its adjoint in w: `(G, N, T, C)` and `(G, N, Y, O)` to `(G, O, K, C)`."""
    groups, batch, steps, outputs = y.shape
    channels = x.shape[-1]
    x = _pad_or_crop(x, geometry.padding, geometry.padding)
    if geometry.stride == 1 and _uses_taps(groups, channels, outputs):
        # Clips end to end; zeros after each clip of y separate them.
        length = x.shape[2]
        x = x.reshape(-1, channels)
        y = _pad_or_crop(y, 0, length - steps).reshape(batch * length, outputs)
        count = batch * length - geometry.reach(kernel)
        y = y[:count].T
        starts = range(0, geometry.dilation * kernel, geometry.dilation)
        return mx.stack([y @ x[start : start + count] for start in starts], axis=1)[None]
    rows, _ = _windows(x, kernel, geometry)
    grad = y.reshape(groups, -1, outputs).swapaxes(1, 2) @ rows
    return grad.reshape(groups, outputs, kernel, channels)


def _uses_taps(groups: int, inputs: int, outputs: int) -> bool:
    """Whether copying all windows costs more than accumulating the outputs K times."""
    narrow = outputs < _FEW or max(inputs, outputs) <= _NARROW
    return groups == 1 and inputs >= _FEW and narrow


def _pad_or_crop(x: mx.array, before: int, after: int) -> mx.array:
    """Zero-pad `(G, N, T, C)` in time, or crop it where a count is negative."""
    x = x[:, :, max(0, -before) : x.shape[2] - max(0, -after)]
    before, after = max(0, before), max(0, after)
    if before == after == 0:
        return x
    if x.shape[-1] < _WHOLE_STEPS:
        return mx.pad(x, [(0, 0), (0, 0), (before, after), (0, 0)])
    length = x.shape[2]
    x = _take_steps(x, mx.clip(mx.arange(-before, length + after), 0, length - 1))
    x[:, :, :before] = 0
    x[:, :, before + length :] = 0
    return x


def _windows(x: mx.array, kernel: int, geometry: _Geometry) -> tuple[mx.array, int]:
    """Unfold padded `(G, N, T, C)` to rows `(G, N Y, K C)`, one per window; also return Y."""
    groups, batch, length, channels = x.shape
    count = (length - geometry.reach(kernel) - 1) // geometry.stride + 1
    if channels < _WHOLE_STEPS or kernel == 1:
        windows = mx.as_strided(
            mx.contiguous(x),
            (groups, batch, count, kernel, channels),
            (
                batch * length * channels,
                length * channels,
                geometry.stride * channels,
                geometry.dilation * channels,
                1,
            ),
        )
    else:
        starts = mx.arange(0, geometry.stride * count, geometry.stride)
        taps = mx.arange(0, geometry.dilation * kernel, geometry.dilation)
        windows = _take_steps(x, starts[:, None] + taps)
    return windows.reshape(groups, batch * count, kernel * channels), count


def _take_steps(x: mx.array, steps: mx.array) -> mx.array:
    """Take steps of each clip: `(G, N, T, C)` to `(G, N, ..., C)`.

    MLX's CPU backend copies each step as a block; strided or padded views are copied element by
    element, which takes two to three times as long.
    """
    groups, batch, length, channels = x.shape
    clips = mx.arange(0, groups * batch * length, length).reshape(-1, *[1] * steps.ndim)
    taken = mx.take(x.reshape(-1, channels), clips + steps, axis=0)
    return taken.reshape(groups, batch, *steps.shape, channels)


def sum_of_taps(
    rows: mx.array,
    taps: mx.array | Sequence[mx.array],
    dilation: int = 1,
    onto: mx.array | None = None,
) -> mx.array:
    """Convolve `(N, C)` with K taps `(C, O)` to `(N - dilation (K - 1), O)`, added to `onto`."""
    count = len(rows) - dilation * (len(taps) - 1)
    y = onto
    for tap in range(len(taps)):
        part = rows[tap * dilation : tap * dilation + count]
        y = part @ taps[tap] if y is None else mx.addmm(y, part, taps[tap])
    assert y is not None
    return y


def _sum_of_taps(x: mx.array, taps: mx.array, dilation: int) -> mx.array:
    """Convolve padded `(1, N, T, C)` with `(K, C, O)` to `(1, N, Y, O)`, stride 1.

    Windows across two clips are computed too, and skipped by the returned view.
    """
    _, batch, length, channels = x.shape
    kernel, _, outputs = taps.shape
    y = sum_of_taps(x.reshape(batch * length, channels), taps, dilation)
    shape = (1, batch, length - dilation * (kernel - 1), outputs)
    return mx.as_strided(y, shape, (0, length * outputs, outputs, 1))


def _add_columns(columns: mx.array, blocks: int, width: int, geometry: _Geometry) -> mx.array:
    """Apply the adjoint of `_windows`, one stride of steps per row.

    Args:
        columns: `(G, N, Y, K C)`.
        blocks: strides that a window spans.
        width: stride * C.

    Returns:
        `(G, N, Y + dilation (blocks - 1), width)`.
    """
    total = None
    for block in range(blocks):
        part = columns[..., block * width : (block + 1) * width]
        start, end = block * geometry.dilation, (blocks - 1 - block) * geometry.dilation
        part = mx.pad(part, [(0, 0), (0, 0), (start, end), (0, width - part.shape[-1])])
        total = part if total is None else total + part
    assert total is not None
    return total
