"""Plain layers: upstream's parameter names, `(N, T, C)` activations, PyTorch's initial values.

A layer computes in the type of its weight, whatever it is given; a norm in fp32.

Source: `torch.nn.Conv1d`, `ConvTranspose1d`, `Conv2d`; GPT-SoVITS `module/modules.py` (LayerNorm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, TypeVar

import mlx.core as mx
import mlx.nn as nn
from typing_extensions import Self

from mlx_vits.nn import cuda, cuda_conv
from mlx_vits.nn.activations import biased_sum, leaky_relu, sum_and_leaky_relu
from mlx_vits.nn.conv import (
    bias_form,
    conv1d,
    conv_transpose1d,
    geometry_on_cuda,
    weight_form,
)
from mlx_vits.nn.gradients import sum_to, with_gradient
from mlx_vits.nn.threads import forget_at_thread_end

Kind = Literal["conv1d", "conv_transpose1d", "conv2d"]
Layer = TypeVar("Layer", bound="Convolution")


def exact(layer: Layer) -> Layer:
    """Has a layer compute in fp32 where others do not: what losses read comes out of it."""
    layer.is_exact = True
    return layer


def draw_uniform(shape: tuple[int, ...], fan_in: int) -> mx.array:
    """PyTorch's initial values for weights and biases: uniform within 1 / sqrt(fan_in)."""
    forget_at_thread_end()
    bound = 1.0 / math.sqrt(fan_in)
    return mx.random.uniform(-bound, bound, shape)


class Convolution(nn.Module):
    """What all convolutions share: geometry, initial values, and a forward on the weight.

    Activations may also be as `conv.planar` gives them, and come out alike.

    Args:
        stride, padding, dilation: in samples.
        groups: divides both channel counts.
        bias: whether there is one.
        file_normed: whether upstream's files hold the weight as `weight_g` and `weight_v`,
            whatever form it has here.

    Attributes:
        kind: what `layout.py` has to know of the layer.
        is_exact: whether it computes in fp32 where others do not.
    """

    kind: Kind
    is_exact = False

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
        """A layer with this weight.

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
        """The weight that the forward uses."""
        return self["weight"]

    def form(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in which the forward takes a parameter of this name and shape as well.

        It is the one that needs no other view, forward and backward.
        """
        if name == "bias":
            return bias_form(shape)
        if name not in ("weight", "weight_v") or self.kind == "conv_transpose1d":
            return shape
        outputs, taps, *_, channels = shape
        geometry = {"stride": self.stride, "padding": self.padding, "groups": self.groups}
        return weight_form((outputs, taps, channels), **geometry)

    def _weight_shape(self, inputs: int, outputs: int, kernel: int) -> tuple[int, ...]:
        if self.kind == "conv_transpose1d":
            return (outputs // self.groups, kernel, inputs)
        return (outputs, kernel, inputs // self.groups)

    def _store(self, weight: mx.array, bias: mx.array | None) -> None:
        self["weight"] = weight
        if bias is not None:
            self["bias"] = bias

    def __call__(self, x: mx.array) -> mx.array:
        """`(N, T, in_channels)` to `(N, T_out, out_channels)`; lengths as in `nn/conv.py`."""
        return self._convolve(x, self.get("bias"))

    def leaky(self, x: mx.array, slope: float) -> mx.array:
        """The convolution and a leaky ReLU, which takes the bias along."""
        x = x.astype(self.effective_weight().dtype)
        if "bias" in self and (at := self.on_cuda(x)):
            return cuda_conv.leaky(at, slope)(x, self.effective_weight(), self["bias"])
        return leaky_relu(self._convolve(x, None), slope, self.get("bias"))

    def onto(self, x: mx.array, y: mx.array) -> mx.array:
        """`x` plus the convolution of `y`."""
        if at := self.on_cuda(y, x):
            return cuda_conv.onto(at)(x, y, self.effective_weight(), self["bias"])
        return biased_sum(x, self._convolve(y, None), self["bias"])

    def onto_and_leaky(
        self, x: mx.array | None, y: mx.array, slope: float
    ) -> tuple[mx.array, mx.array]:
        """`x`, where there is one, plus the convolution of `y`; and a leaky ReLU of that."""
        if x is not None and (at := self.on_cuda(y, x)):
            function = cuda_conv.onto_and_leaky(at, slope)
            total, activated = function(x, y, self.effective_weight(), self["bias"])
            return total, activated
        return sum_and_leaky_relu(x, self._convolve(y, None), self["bias"], slope)

    def unbiased(self, x: mx.array) -> mx.array:
        """The convolution without its bias."""
        return self._convolve(x, None)

    def on_cuda(self, x: mx.array, *others: mx.array) -> cuda_conv.Geometry | None:
        """Where `cuda_conv.py` computes this layer of `x` together with what follows."""
        if self.kind == "conv_transpose1d" or self.groups > 1:
            return None
        weight, shape = self.effective_weight(), (self.stride, self.padding, self.dilation)
        return geometry_on_cuda([x, self["bias"], *others], weight, *shape)

    def _convolve(self, x: mx.array, bias: mx.array | None) -> mx.array:
        function = conv_transpose1d if self.kind == "conv_transpose1d" else conv1d
        weight = self.effective_weight()
        return function(
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
    Sizes are those along the height; `(5, 1)` and 5 name the same kernel. `leaky` and `unbiased`
    take and give what `columns` does.

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
        **options: Any,
    ):
        super().__init__(
            in_channels,
            out_channels,
            _along_height(kernel_size, 1, "kernel_size"),
            stride=_along_height(stride, 1, "stride"),
            padding=_along_height(padding, 0, "padding"),
            **options,
        )

    def _weight_shape(self, inputs: int, outputs: int, kernel: int) -> tuple[int, ...]:
        return (outputs, kernel, 1, inputs)

    def columns(self, x: mx.array) -> mx.array:
        """`(N * W, H, in_channels)`, columns in the batch, to `(N * W, H_out, out_channels)`."""
        return self._convolve(x, self.get("bias"))

    def _convolve(self, x: mx.array, bias: mx.array | None) -> mx.array:
        weight = self.effective_weight()
        if weight.ndim == 4 and weight.shape[2] == 1:
            weight = weight.squeeze(2)
        x = x.astype(weight.dtype)
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
    """The height's part of a size whose other part has to be `across`."""
    if isinstance(size, int):
        return size
    if len(size) != 2 or size[1] != across:
        raise ValueError(f"{name} is {size}; across the width only {across} is supported")
    return size[0]


class Linear(nn.Linear):
    """`x @ weight.T + bias` in the type of the weight."""

    is_exact = False

    def __call__(self, x: mx.array) -> mx.array:
        """`(..., C)` to `(..., O)`."""
        return super().__call__(x.astype(self.weight.dtype))


class LayerNorm(nn.Module):
    """Normalises over channels; upstream names its parameters `gamma` and `beta`."""

    is_exact = True

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.gamma = mx.ones((channels,))
        self.beta = mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        """`(..., C)` to `(..., C)`, computed in fp32 and of the type that came in."""
        exact = x.astype(mx.float32)
        return mx.fast.layer_norm(exact, self.gamma, self.beta, self.eps).astype(x.dtype)

    def of_sum(self, x: mx.array, y: mx.array, bias: mx.array | None = None) -> mx.array:
        """Of `x + (y + bias)`: `(..., C)` twice and `(C,)` or None."""
        added = cuda.zero(y.dtype) if bias is None else bias
        if cuda.is_used(x, y, added) and self.gamma.dtype == self.beta.dtype == mx.float32:
            normed: mx.array = _norm_of_sum(self.eps)(x, y, added, self.gamma, self.beta)[0]
            return normed
        return self(x + (y if bias is None else y + bias))


@cache
def _norm_of_sum(eps: float) -> Callable[..., Sequence[mx.array]]:
    def forward(
        x: mx.array, y: mx.array, bias: mx.array, gamma: mx.array, beta: mx.array
    ) -> tuple[mx.array, mx.array]:
        return cuda.norm_of_sum(x, y, bias, gamma, beta, eps)

    def norm(x: mx.array, gamma: mx.array, beta: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, gamma, beta, eps)

    def gradient(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> list[mx.array]:
        (_, _, bias, gamma, beta), dtype = primals, outputs[1].dtype
        exact, cotangent = outputs[1].astype(mx.float32), cotangents[0].astype(mx.float32)
        of_sum, *of_others = mx.vjp(norm, [exact, gamma, beta], [cotangent])[1]
        of_sum = of_sum.astype(dtype)
        return [of_sum, of_sum, sum_to(bias, of_sum), *of_others]

    return with_gradient(forward, gradient)
