"""Every convolution of the project, behind one interface, formulated for the backend at hand.

Axes: N batch, T time, C channels in, O channels out, K kernel taps. Activations are `(N, T, C)`.
Weights are in MLX's own layout: `(O, K, C / groups)`, transposed convolution `(O / groups, K, C)`.

On Metal these are MLX's own convolutions. On CUDA as well, but in two dimensions, of height 1:
cuDNN has fast kernels for those, and MLX tells the gradient of a weight from a forward by their
sizes along the second one. There activations may stay `(N, 1, T, C)` from one convolution to the
next, see `planar`. MLX's CPU backend has no fast path for dilated, transposed and grouped
ones (a naive loop: one dilated convolution of the decoder takes 735 ms where PyTorch takes 5), so
on CPU all of them are matrix products: `matmul_conv.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx

from mlx_vits.nn import cuda, cuda_conv, matmul_conv, planar_conv
from mlx_vits.nn.gradients import sum_to, with_gradient

BACKENDS = ("auto", "native", "planar", "cudnn", "matmul")
ON_CUDA = "planar"  # or "cudnn"
_backend = "auto"


@contextmanager
def conv_backend(name: str) -> Iterator[None]:
    """Chooses the formulation within a `with` block.

    Args:
        name: "native" (MLX's convolutions), "planar" (the same in two dimensions), "cudnn" (with
            the gradients of `planar_conv.py`), "matmul" (the CPU formulation) or "auto" (by the
            device).
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"conv backend {name!r} is not one of {BACKENDS}")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def _chosen() -> str:
    if _backend != "auto":
        return _backend
    if mx.default_device().type != mx.DeviceType.gpu:
        return "matmul"
    return ON_CUDA if mx.cuda.is_available() else "native"


def planar(x: mx.array) -> mx.array:
    """`(N, T, C)` as convolutions take it without another view: `(N, 1, T, C)` on CUDA.

    Convolutions give back what they take, and so does all that computes element by element. On
    other devices it stays as it is.
    """
    return x[:, None] if _chosen() == "planar" and cuda.is_used(x) else x


def weight_form(
    shape: tuple[int, int, int], *, stride: int, padding: int, groups: int
) -> tuple[int, ...]:
    """The shape in which `conv1d` takes a weight `(O, K, C / groups)` without another view.

    Returns:
        `(O, C)` of a product, `(O, 1, K, C)` where convolutions are planar, else the shape.
    """
    outputs, taps, channels = shape
    if groups > 1:
        return shape
    if _is_product(shape, stride, padding):
        return (outputs, channels)
    return (outputs, 1, taps, channels) if _chosen() == "planar" else shape


def bias_form(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a bias `(O,)` is taken as well: `(1, O)` where convolutions are planar.

    Its gradient is a sum over rows: to MLX that is one row, and `(O,)` another view of it.
    """
    return (1, *shape) if _chosen() == "planar" else shape


def _is_product(shape: tuple[int, ...], stride: int, padding: int) -> bool:
    """Whether a convolution of one group with a weight of this shape reads each step alone."""
    return math.prod(shape[1:-1]) == 1 and stride == 1 and padding == 0


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
        x: `(N, T, C)`, or as `planar` gives it.
        weight: `(O, K, C / groups)`, or in the shape of `weight_form`.
        bias: `(O,)`, or in that of `bias_form`, or None.

    Returns:
        `(N, (T + 2 padding - dilation (K - 1) - 1) // stride + 1, O)`, or planar as x is.
    """
    backend = _chosen()
    if groups > 1 and backend in ("planar", "cudnn"):
        # The gradient of MLX 0.32.4's own ends in an illegal memory access on CUDA.
        backend = "matmul"
    if backend == "cudnn" and min(weight.shape[0], weight.shape[-1]) == 1:
        backend = "planar"
    if groups == 1 and _is_product(weight.shape, stride, padding):
        weight = weight.squeeze(1) if weight.ndim == 3 else weight
        return _one_tap(x, weight) if bias is None else _one_tap(x, weight, bias)
    if backend == "native":
        y = mx.conv1d(x, weight, stride, padding, dilation, groups)
    elif backend == "planar":
        if on_cuda := geometry_on_cuda([x], weight, stride, padding, dilation):
            y = cuda_conv.alone(on_cuda)(x, weight)
        else:
            y = cuda_conv.Geometry(stride, padding, dilation).convolve(x, weight)
            y = y.squeeze(1) if x.ndim == 3 else y
    elif backend == "cudnn":
        y = planar_conv.conv1d(x, weight, stride, padding, dilation)
    else:
        y = matmul_conv.conv1d(x, weight, stride, padding, dilation, groups)
    return y if bias is None else y + bias


def geometry_on_cuda(
    arrays: Sequence[mx.array], weight: mx.array, stride: int, padding: int, dilation: int
) -> cuda_conv.Geometry | None:
    """For what `cuda_conv.py` computes with these arrays and a weight of one group."""
    if _chosen() != "planar" or _is_product(weight.shape, stride, padding):
        return None
    if not cuda.is_used(*arrays, weight):
        return None
    return cuda_conv.Geometry(stride, padding, dilation)


def _product(x: mx.array, w: mx.array, bias: mx.array | None = None) -> mx.array:
    """`(..., C)` with `(O, C)` and a bias to `(..., O)`."""
    if bias is not None and bias.ndim == 2:
        # Rows: MLX would else multiply clip by clip with a bias `(1, O)`.
        return mx.unflatten(mx.addmm(bias, x.flatten(0, -2), w.T), 0, x.shape[:-1])
    return x @ w.T if bias is None else mx.addmm(bias, x, w.T)


def _product_gradient(
    primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
) -> list[mx.array]:
    # MLX's own gradient of the weight comes out transposed, to be copied once more.
    x, w = primals[:2]
    rows = cotangent.flatten(0, -2)
    of_x = mx.unflatten(rows @ w, 0, x.shape[:-1])
    of_bias = [sum_to(bias, rows) for bias in primals[2:]]
    # Not the view that the forward takes: MLX 0.32.4 makes one of the two when it records a step in
    # parts, and cannot play that back (`IndexError: _Map_base::at`).
    is_flat = len(primals) > 2 and primals[2].ndim == 2
    of_w = rows.T @ (x.reshape(-1, x.shape[-1]) if is_flat else x.flatten(0, -2))
    return [of_x, of_w, *of_bias]


_one_tap = with_gradient(_product, _product_gradient)


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
        x: `(N, T, C)`, or as `planar` gives it.
        weight: `(O / groups, K, C)`.
        bias: `(O,)`, or in the shape of `bias_form`, or None.

    Returns:
        `(N, (T - 1) stride + dilation (K - 1) + 1 - 2 padding, O)`, or planar as x is.
    """
    pieces = zip(mx.split(x, groups, axis=-1), mx.split(weight, groups, axis=-1), strict=True)
    outputs, backend = [], _chosen()
    for part, w in pieces:
        if backend == "native":
            outputs.append(mx.conv_transpose1d(part, w, stride, padding, dilation))
        elif backend == "planar":
            geometry = ((1, stride), (0, padding), (1, dilation))
            tall = part[:, None] if part.ndim == 3 else part
            y = mx.conv_transpose2d(tall, w[:, None], *geometry)
            outputs.append(y.squeeze(1) if part.ndim == 3 else y)
        elif backend == "cudnn":
            outputs.append(planar_conv.conv_transpose1d(part, w, stride, padding, dilation))
        else:
            w = matmul_conv.dilate(w, dilation)
            outputs.append(matmul_conv.conv_transpose1d(part, w, stride, padding))
    y = outputs[0] if groups == 1 else mx.concatenate(outputs, axis=-1)
    return y if bias is None else y + bias
