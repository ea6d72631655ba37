"""Weight normalisation: `w = g * v / ||v||`, g and v separate trainable parameters.

Source: Salimans and Kingma 2016, arXiv:1602.07868; `torch.nn.utils.weight_norm` with `dim=0`, which
is what every weight-normed layer of GPT-SoVITS uses. The norm runs over all axes but PyTorch's
first, which is the output channel of a convolution and the *input* channel of a transposed one, and
has no epsilon. MLX's gradient through it equals PyTorch's, so v is never normalised again.

Which layers carry it is a fact of the checkpoint. `NormScheme` names that set and two others, kept
for comparison; loading folds or splits on entry, and files always hold upstream's own set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from mlx_vits.nn import cuda
from mlx_vits.nn.gradients import with_gradient
from mlx_vits.nn.layers import (
    ColumnConvolution,
    Conv1d,
    Conv2d,
    Convolution,
    ConvTranspose1d,
    Kind,
)
from mlx_vits.nn.streams import side_by_side

NormScheme = Literal["upstream", "plan", "folded"]
Back = Callable[[Sequence[mx.array]], list[mx.array]]
Part = Literal["conv_pre", "ups", "resblocks", "conv_post", "wavenet"]

NORMED_PARTS: dict[str, frozenset[str]] = {
    "upstream": frozenset({"ups", "resblocks", "wavenet"}),
    "plan": frozenset({"conv_pre", "ups", "conv_post", "wavenet"}),
    "folded": frozenset(),
}
NORM_SCHEMES = tuple(NORMED_PARTS)

# The axes the norm runs over, in MLX's weight layout.
_NORM_AXES: dict[str, tuple[int, ...]] = {
    "conv1d": (1, 2),
    "conv_transpose1d": (0, 1),
    "conv2d": (1, 2, 3),
}


class NormedWeight(NamedTuple):
    """A weight as length `g` and direction `v`.

    Attributes:
        g: size 1 along every axis but the channel's: `(O, 1, 1)`, or `(1, 1, C)` transposed.
        v: the shape of the weight.
    """

    g: mx.array
    v: mx.array


def fold_weight(g: mx.array, v: mx.array, kind: Kind) -> mx.array:
    """`g * v / ||v||` in fp32 and MLX's weight layout; the shape of `v`."""
    g, v = g.astype(mx.float32), v.astype(mx.float32)
    if kind != "conv_transpose1d":
        return _fold(_NORM_AXES[kind])(g, v)
    # Its channels come last. Turned to rows, as a training step holds them, so that both add up
    # in the same order and give the same to the last bit.
    turned = _fold((1, 2))(g.swapaxes(0, 2), mx.contiguous(v.swapaxes(0, 2)))
    return turned.swapaxes(0, 2)


def fold_rows(g: mx.array, directions: Sequence[mx.array]) -> list[mx.array]:
    """`g * v / ||v||` of channels that lie in rows, fp32.

    Args:
        g: `(R, 1)`, of all rows of all matrices.
        directions: v, matrices `(R_i, W_i)`.

    Returns:
        Weights in the shapes of `directions`.
    """
    matrices = [v.astype(mx.float32) for v in directions]
    function = _fold_rows_on_cuda if cuda.is_used(*matrices) else _fold_rows
    folded: list[mx.array] = function(g.astype(mx.float32), *matrices)
    return folded[: len(matrices)]


def fold_rows_and_back(g: mx.array, directions: Sequence[mx.array]) -> tuple[list[mx.array], Back]:
    """As `fold_rows`, with its gradient: of cotangents, to those in `g` and in the directions."""
    primals = [array.astype(mx.float32) for array in (g, *directions)]
    forward, gradient = _rows_forward, _rows_gradient
    if cuda.is_used(*primals[1:]):
        forward, gradient = _rows_forward_on_cuda, _rows_gradient_on_cuda
    outputs = forward(*primals)

    def back(cotangents: Sequence[mx.array]) -> list[mx.array]:
        return gradient(primals, cotangents, outputs)

    return outputs[: len(directions)], back


@cache
def _fold(axes: tuple[int, ...]) -> Callable[[mx.array, mx.array], mx.array]:
    """Weight norm over some axes; its gradient passes over the weight five times, MLX's own more.

    With w = g v / |v| and c the gradient in w: g's is (c v) / |v|, and v's is
    g / |v| (c - v (c v) / |v|^2), (c v) the sum over a channel.
    """

    def forward(g: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        length = mx.sqrt(mx.sum(v * v, axis=axes, keepdims=True))
        return v * (g / length), length

    def gradient(
        primals: tuple[mx.array, mx.array],
        cotangents: tuple[mx.array, mx.array],
        outputs: tuple[mx.array, mx.array],
    ) -> tuple[mx.array, mx.array]:
        (g, v), cotangent, length = primals, cotangents[0], outputs[1]
        along = mx.sum(cotangent * v, axis=axes, keepdims=True) / length
        return along, (g / length) * (cotangent - v * (along / length))

    function = with_gradient(forward, gradient)
    return lambda g, v: function(g, v)[0]


def _rows_forward(g: mx.array, *matrices: mx.array) -> list[mx.array]:
    """As `_fold`; what there is one of in a row is computed for all matrices together."""
    length = mx.sqrt(_sums(matrices, matrices))
    scales = _cut_as(g / length, matrices)
    folded = []
    for v, scale, place in zip(matrices, scales, _places(matrices), strict=True):
        with place:
            folded.append(v * scale)
    return [*folded, length]


def _rows_gradient(
    primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
) -> list[mx.array]:
    (g, *matrices), length = primals, outputs[-1]
    gradients = cotangents[: len(matrices)]
    along = _sums(gradients, matrices) / length
    scales, shares = _cut_as(g / length, matrices), _cut_as(along / length, matrices)
    of_each = zip(gradients, matrices, scales, shares, _places(matrices), strict=True)
    found = [along]
    for c, v, scale, share, place in of_each:
        with place:
            found.append(scale * (c - v * share))
    return found


def _places(matrices: Sequence[mx.array]) -> Iterator[AbstractContextManager]:
    return side_by_side([matrix.size for matrix in matrices])


def _sums(some: Sequence[mx.array], others: Sequence[mx.array]) -> mx.array:
    """The sum of each row of the products of two matrices each, of all `(R, 1)`."""
    sums = []
    for one, other, place in zip(some, others, _places(some), strict=True):
        with place:
            sums.append(mx.sum(one * other, axis=1, keepdims=True))
    return mx.concatenate(sums)


def cut_rows(array: mx.array, ends: Sequence[int]) -> list[mx.array]:
    """An array's rows up to each end, from the one before.

    Slices: MLX 0.32.4 cannot compile a function of which a part of `mx.split` comes out.
    """
    return [array[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _cut_as(column: mx.array, matrices: Sequence[mx.array]) -> list[mx.array]:
    """`(R, 1)` in pieces of as many rows as the matrices have."""
    return cut_rows(column, list(itertools.accumulate(len(matrix) for matrix in matrices)))


def _starts(matrices: Sequence[mx.array]) -> list[int]:
    """The first row of each of several matrices one below the other."""
    return list(itertools.accumulate((len(matrix) for matrix in matrices[:-1]), initial=0))


_fold_rows = with_gradient(_rows_forward, _rows_gradient)


def _rows_forward_on_cuda(g: mx.array, *matrices: mx.array) -> list[mx.array]:
    """As `_rows_forward`, the lengths of each matrix apart."""
    pairs = zip(matrices, _starts(matrices), strict=True)
    folded, lengths = zip(*(cuda.fold(g, v, start) for v, start in pairs), strict=True)
    return [*folded, *lengths]


def _rows_gradient_on_cuda(
    primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
) -> list[mx.array]:
    (g, *matrices), count = primals, len(primals) - 1
    arrays = matrices, outputs[count:], cotangents[:count], _starts(matrices)
    of_each = zip(*arrays, strict=True)
    of_matrices, along = zip(*(cuda.fold_gradient(g, *each) for each in of_each), strict=True)
    return [cuda.join(along, g.shape), *of_matrices]


_fold_rows_on_cuda = with_gradient(_rows_forward_on_cuda, _rows_gradient_on_cuda)


def split_weight(weight: mx.array, kind: Kind) -> NormedWeight:
    """`g = ||w||`, `v = w`: the pair that folds to `weight`."""
    weight = weight.astype(mx.float32)
    return NormedWeight(_length(weight, kind), weight)


def _length(v: mx.array, kind: Kind) -> mx.array:
    return mx.sqrt(mx.sum(v * v, axis=_NORM_AXES[kind], keepdims=True))


class WeightNormed(Convolution):
    """Holds `bias`, `weight_g` and `weight_v`, in upstream's order, in place of `weight`."""

    plain: type[Convolution]

    def __init__(self, *shape: Any, file_normed: bool = True, **options: Any):
        super().__init__(*shape, file_normed=file_normed, **options)

    def _store(self, weight: mx.array, bias: mx.array | None) -> None:
        if bias is not None:
            self.bias = bias
        self.weight_g, self.weight_v = split_weight(weight, self.kind)

    def weight(self) -> mx.array:
        """The effective weight, in the shape of `weight_v`, or as it is held."""
        held: mx.array | None = self.__dict__.get("_held")
        return fold_weight(self.weight_g, self.weight_v, self.kind) if held is None else held

    def hold(self, weight: mx.array | None) -> None:
        """Sets an effective weight that was computed elsewhere, in a shape of `weight_v` or `form`.

        Args:
            weight: no parameter; None to compute it from `weight_g` and `weight_v` again.
        """
        self.__dict__["_held"] = weight

    def effective_weight(self) -> mx.array:
        return self.weight()

    def fold(self) -> Convolution:
        """The plain layer with the same output."""
        geometry = {"stride": self.stride, "padding": self.padding}
        if self.kind != "conv2d":
            geometry |= {"dilation": self.dilation, "groups": self.groups}
        return self.plain.from_weight(
            self.weight(), self.get("bias"), file_normed=self.file_normed, **geometry
        )


class WeightNormConv1d(WeightNormed):
    """Weight-normed 1-D convolution; arguments as `Conv1d`.

    Attributes:
        weight_v: `(out_channels, kernel_size, in_channels / groups)`.
        weight_g: `(out_channels, 1, 1)`.
        bias: `(out_channels,)`, absent with `bias=False`.
    """

    kind: Kind = "conv1d"
    plain = Conv1d


class WeightNormConvTranspose1d(WeightNormed):
    """Weight-normed 1-D transposed convolution: one length per *input* channel.

    Attributes:
        weight_v: `(out_channels / groups, kernel_size, in_channels)`.
        weight_g: `(1, 1, in_channels)`.
        bias: `(out_channels,)`, absent with `bias=False`.
    """

    kind: Kind = "conv_transpose1d"
    plain = ConvTranspose1d


class WeightNormConv2d(WeightNormed, ColumnConvolution):
    """Weight-normed 2-D convolution, one column wide, as the period discriminator uses.

    Attributes:
        weight_v: `(out_channels, kernel_size, 1, in_channels)`.
        weight_g: `(out_channels, 1, 1, 1)`.
        bias: `(out_channels,)`, absent with `bias=False`.
    """

    kind: Kind = "conv2d"
    plain = Conv2d


def build_conv1d(part: Part, scheme: NormScheme, *shape: int, **options: Any) -> Convolution:
    """A `WeightNormConv1d` or `Conv1d`, as `scheme` has it for this part of the model.

    Args:
        shape: in_channels, out_channels, kernel_size.
    """
    options["file_normed"] = part in NORMED_PARTS["upstream"]
    layer = WeightNormConv1d if part in NORMED_PARTS[scheme] else Conv1d
    return layer(*shape, **options)


def build_conv_transpose1d(
    part: Part, scheme: NormScheme, *shape: int, **options: Any
) -> Convolution:
    """A `WeightNormConvTranspose1d` or `ConvTranspose1d`, as `build_conv1d`."""
    options["file_normed"] = part in NORMED_PARTS["upstream"]
    layer = WeightNormConvTranspose1d if part in NORMED_PARTS[scheme] else ConvTranspose1d
    return layer(*shape, **options)
