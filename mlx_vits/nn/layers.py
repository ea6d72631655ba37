"""Plain layers: upstream's parameter names, `(N, T, C)` activations, PyTorch's initial values.

Parameters are fp32. A layer computes in its `compute_dtype`, to which it casts its parameters and
its input; `set_compute_dtype` chooses it for a whole model.

Source: `torch.nn.Conv1d`, `ConvTranspose1d`, `Conv2d`; GPT-SoVITS `module/modules.py` (LayerNorm).
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import mlx.core as mx
import mlx.nn as nn
from typing_extensions import Self

from mlx_vits.nn.ops import conv1d, conv_transpose1d
from mlx_vits.nn.threads import forget_at_thread_end

Kind = Literal["conv1d", "conv_transpose1d", "conv2d"]
Layer = TypeVar("Layer", bound=nn.Module)


def keep_fp32(layer: Layer) -> Layer:
    """Have a layer compute in fp32 whatever the others do: a loss reads what it returns."""
    layer.keeps_fp32 = True
    return layer


def set_compute_dtype(model: nn.Module, dtype: mx.Dtype) -> None:
    """Choose what the trained layers of a model compute in.

    Frozen layers and those marked by `keep_fp32` compute in fp32. Parameters stay fp32.
    """
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            is_cast = module.trainable_parameters() and not module.keeps_fp32
            module.compute_dtype = dtype if is_cast else mx.float32


def draw_uniform(shape: tuple[int, ...], fan_in: int) -> mx.array:
    """Draw PyTorch's initial values for weights and biases: uniform within 1 / sqrt(fan_in)."""
    forget_at_thread_end()
    bound = 1.0 / math.sqrt(fan_in)
    return mx.random.uniform(-bound, bound, shape)


class LeakyReLU(nn.Module):
    """x above 0, `slope` times it elsewhere; PyTorch's gradient: `slope` at 0.

    The backward keeps one byte an element, where MLX's own, a maximum, keeps two arrays.
    """

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def __call__(self, x: mx.array) -> mx.array:
        """Any shape."""
        return mx.where(x > 0, x, self.slope * x)


class Convolution(nn.Module):
    """What all convolutions share: geometry, initial values and the forward.

    Args:
        stride, padding, dilation: in samples.
        groups: divides both channel counts.
        bias: whether there is one.
        file_normed: whether upstream's files hold the weight as `weight_g` and `weight_v`,
            whatever form it has here.

    Attributes:
        kind: selects the axes in `layout.py`.
        compute_dtype: see `set_compute_dtype`.
        keeps_fp32: see `keep_fp32`.
    """

    kind: Kind
    compute_dtype: mx.Dtype = mx.float32
    keeps_fp32 = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        file_normed: bool = False,
    ):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.file_normed = file_normed
        shape = self._weight_shape(in_channels, out_channels, kernel_size)
        # PyTorch counts all but the first axis of its own layout.
        fan_in = kernel_size * (shape[0] if self.kind == "conv_transpose1d" else shape[-1])
        self._store(
            draw_uniform(shape, fan_in), draw_uniform((out_channels,), fan_in) if bias else None
        )

    @classmethod
    def from_weight(cls, weight: mx.array, bias: mx.array | None = None, **options: Any) -> Self:
        """Build a layer with this weight.

        Args:
            weight: in the layer's own shape, as its attributes say.
            bias: `(out_channels,)` or None.
            options: `stride`, `padding`, `dilation`, `groups`, `file_normed`.
        """
        groups = options.get("groups", 1)
        outputs, kernel, inputs = weight.shape[0], weight.shape[1], weight.shape[-1]
        if cls.kind == "conv_transpose1d":
            outputs *= groups
        else:
            inputs *= groups
        layer = cls(inputs, outputs, kernel, bias=bias is not None, **options)
        layer._store(weight, bias)
        return layer

    def effective_weight(self) -> mx.array:
        """Return the weight of the forward, fp32."""
        return self["weight"]

    def _weight_shape(self, inputs: int, outputs: int, kernel: int) -> tuple[int, ...]:
        if self.kind == "conv_transpose1d":
            return (outputs // self.groups, kernel, inputs)
        return (outputs, kernel, inputs // self.groups)

    def _store(self, weight: mx.array, bias: mx.array | None) -> None:
        self["weight"] = weight
        if bias is not None:
            self["bias"] = bias

    def parameters_in_use(self) -> tuple[mx.array, mx.array | None]:
        """Return the effective weight and the bias in the type that the layer computes in."""
        bias = self.get("bias")
        dtype = self.compute_dtype
        return self.effective_weight().astype(dtype), None if bias is None else bias.astype(dtype)

    def __call__(self, x: mx.array) -> mx.array:
        """`(N, T, in_channels)` to `(N, T_out, out_channels)`; lengths as in `nn/ops.py`."""
        weight, bias = self.parameters_in_use()
        convolve = conv_transpose1d if self.kind == "conv_transpose1d" else conv1d
        return convolve(
            x.astype(weight.dtype),
            weight,
            bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def _extra_repr(self) -> str:
        return ", ".join(f"{name}={self[name].shape}" for name in self.parameters())


class Conv1d(Convolution):
    """1-D convolution.

    Attributes:
        weight: `(out_channels, kernel_size, in_channels / groups)`.
        bias: `(out_channels,)`, absent with `bias=False`.
    """

    kind: Kind = "conv1d"


class ConvTranspose1d(Convolution):
    """1-D transposed convolution, no output padding.

    Attributes:
        weight: `(out_channels / groups, kernel_size, in_channels)`.
        bias: `(out_channels,)`, absent with `bias=False`.
    """

    kind: Kind = "conv_transpose1d"


class ColumnConvolution(Convolution):
    """2-D convolution with a kernel one column wide, one group.

    Columns never meet, so it is a 1-D convolution along the height with the columns in the batch.
    Sizes are those along the height; `(5, 1)` and 5 name the same kernel.

    Raises:
        ValueError: a size reaches across columns.
    """

    kind: Kind = "conv2d"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        file_normed: bool = False,
    ):
        super().__init__(
            in_channels,
            out_channels,
            _along_height(kernel_size, 1, "kernel_size"),
            stride=_along_height(stride, 1, "stride"),
            padding=_along_height(padding, 0, "padding"),
            bias=bias,
            file_normed=file_normed,
        )

    def _weight_shape(self, inputs: int, outputs: int, kernel: int) -> tuple[int, ...]:
        return (outputs, kernel, 1, inputs)

    def columns(self, x: mx.array) -> mx.array:
        """`(N * W, H, in_channels)`, columns in the batch, to `(N * W, H_out, out_channels)`."""
        weight, bias = self.parameters_in_use()
        x, weight = x.astype(weight.dtype), weight.squeeze(2)
        return conv1d(x, weight, bias, stride=self.stride, padding=self.padding)

    def __call__(self, x: mx.array) -> mx.array:
        """`(N, H, W, in_channels)` to `(N, H_out, W, out_channels)`."""
        batch, height, width, channels = x.shape
        y = self.columns(x.swapaxes(1, 2).reshape(batch * width, height, channels))
        return y.reshape(batch, width, *y.shape[1:]).swapaxes(1, 2)


class Conv2d(ColumnConvolution):
    """2-D convolution, one column wide.

    Attributes:
        weight: `(out_channels, kernel_size, 1, in_channels)`.
        bias: `(out_channels,)`, absent with `bias=False`.
    """


def _along_height(size: int | tuple[int, int], across: int, name: str) -> int:
    """Return the height's part of a size whose other part has to be `across`."""
    if isinstance(size, int):
        return size
    if len(size) != 2 or size[1] != across:
        raise ValueError(f"{name} is {size}; across the width only {across} is supported")
    return size[0]


class Linear(nn.Linear):
    """`x @ weight.T + bias`, in the layer's `compute_dtype`."""

    compute_dtype: mx.Dtype = mx.float32
    keeps_fp32 = False

    def __call__(self, x: mx.array) -> mx.array:
        """`(..., C)` to `(..., O)`."""
        dtype = self.compute_dtype
        return mx.addmm(self.bias.astype(dtype), x.astype(dtype), self.weight.astype(dtype).T)


class LayerNorm(nn.Module):
    """Layer norm over channels; upstream names its parameters `gamma` and `beta`."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.gamma = mx.ones((channels,))
        self.beta = mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        """`(..., C)` to `(..., C)` of the same type; statistics are fp32."""
        return mx.fast.layer_norm(x, self.gamma, self.beta, self.eps).astype(x.dtype)
