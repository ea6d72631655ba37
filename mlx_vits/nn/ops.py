"""The one seam between the models and what makes a backend fast: the convolutions.

Axes: N batch, T time, C channels in, O channels out, K kernel taps. Activations are `(N, T, C)`,
weights are in MLX's layout: `(O, K, C / groups)`, transposed `(O / groups, K, C)`.

These are MLX's own convolutions unless `accel` has better ones for the backend at hand.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_vits import accel


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
    if weight.shape[1] == stride == groups == 1 and padding == 0:
        product = weight.squeeze(1).T
        return x @ product if bias is None else mx.addmm(bias, x, product)
    fast = accel.convolutions()
    convolve = mx.conv1d if fast is None else fast.conv1d
    y = convolve(x, weight, stride, padding, dilation, groups)
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
    """1-D transposed convolution without output padding, as PyTorch's `conv_transpose1d`.

    Args:
        x: `(N, T, C)`.
        weight: `(O / groups, K, C)`.
        bias: `(O,)` or None.

    Returns:
        `(N, (T - 1) stride + dilation (K - 1) + 1 - 2 padding, O)`.
    """
    fast = accel.convolutions()
    convolve = mx.conv_transpose1d if fast is None else fast.conv_transpose1d
    pairs = zip(mx.split(x, groups, axis=-1), mx.split(weight, groups, axis=-1), strict=True)
    parts = [convolve(part, w, stride, padding, dilation) for part, w in pairs]
    y = parts[0] if groups == 1 else mx.concatenate(parts, axis=-1)
    return y if bias is None else y + bias
