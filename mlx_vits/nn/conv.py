"""Every convolution of the project, behind one interface, formulated for the backend at hand.

Axes: N batch, T time, C channels in, O channels out, K kernel taps. Activations are `(N, T, C)`.
Weights are in MLX's own layout: `(O, K, C / groups)`, transposed convolution `(O / groups, K, C)`.

On Metal and CUDA these are MLX's own convolutions. MLX's CPU backend has no fast path for
dilated, transposed and grouped ones (a naive loop: one dilated convolution of the decoder takes
735 ms where PyTorch takes 5), so on CPU all of them are matrix products: `matmul_conv.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from mlx_vits.nn import matmul_conv

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
        y = matmul_conv.conv1d(x, weight, stride, padding, dilation, groups)
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
            w = matmul_conv.dilate(w, dilation)
            outputs.append(matmul_conv.conv_transpose1d(part, w, stride, padding))
    y = outputs[0] if groups == 1 else mx.concatenate(outputs, axis=-1)
    return y if bias is None else y + bias
