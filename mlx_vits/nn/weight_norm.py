"""Weight normalisation: `w = g * v / ||v||`, g and v separate trainable parameters.

Source: Salimans and Kingma 2016, arXiv:1602.07868; `torch.nn.utils.weight_norm` with `dim=0`, which
is what every weight-normed layer of GPT-SoVITS uses. The norm runs over all axes but PyTorch's
first, which is the output channel of a convolution and the *input* channel of a transposed one, and
has no epsilon. MLX's gradient through it equals PyTorch's, so v is never normalised again.

Which layers carry it is a fact of the checkpoint. `NormScheme` names that set and two others, kept
for comparison; loading folds or splits on entry, and files always hold upstream's own set.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import mlx.core as mx

from mlx_vits.nn.layers import (
    ColumnConvolution,
    Conv1d,
    Conv2d,
    Convolution,
    ConvTranspose1d,
    Kind,
)

NormScheme = Literal["upstream", "plan", "folded"]
Part = Literal["conv_pre", "ups", "resblocks", "conv_post", "wavenet"]

NORMED_PARTS: dict[str, frozenset[str]] = {
    "upstream": frozenset({"ups", "resblocks", "wavenet"}),
    "plan": frozenset({"conv_pre", "ups", "conv_post", "wavenet"}),
    "folded": frozenset(),
}
NORM_SCHEMES = tuple(NORMED_PARTS)

# The axes the norm runs over, in MLX's weight layout.
NORM_AXES: dict[str, tuple[int, ...]] = {
    "conv1d": (1, 2),
    "conv_transpose1d": (0, 1),
    "conv2d": (1, 2, 3),
}


class NormedWeight(NamedTuple):
    """A weight as magnitude `g` and direction `v`.

    Attributes:
        g: size 1 along every axis but the channel's: `(O, 1, 1)`, or `(1, 1, C)` transposed.
        v: the shape of the weight.
    """

    g: mx.array
    v: mx.array


def weight_norm(g: mx.array, v: mx.array, axes: tuple[int, ...]) -> mx.array:
    """Return `g * v / ||v||`, the norm over `axes`."""
    return v * (g / _norm(v, axes))


def fold_weight(g: mx.array, v: mx.array, kind: Kind) -> mx.array:
    """Return a layer's effective weight, fp32, in the shape of `v`."""
    return weight_norm(g.astype(mx.float32), v.astype(mx.float32), NORM_AXES[kind])


def split_weight(weight: mx.array, kind: Kind) -> NormedWeight:
    """Return `g = ||w||`, `v = w`: the pair that folds to `weight`."""
    weight = weight.astype(mx.float32)
    return NormedWeight(_norm(weight, NORM_AXES[kind]), weight)


def _norm(v: mx.array, axes: tuple[int, ...]) -> mx.array:
    return mx.sqrt(mx.sum(v * v, axis=axes, keepdims=True))


class WeightNormed(Convolution):
    """Holds `bias`, `weight_g` and `weight_v`, in upstream's order, in place of `weight`."""

    plain: type[Convolution]

    def __init__(self, *shape: Any, file_normed: bool = True, **options: Any):
        super().__init__(*shape, file_normed=file_normed, **options)

    def _store(self, weight: mx.array, bias: mx.array | None) -> None:
        if bias is not None:
            self.bias = bias
        self.weight_g, self.weight_v = split_weight(weight, self.kind)

    def effective_weight(self) -> mx.array:
        """Return `g * v / ||v||`, fp32, in the shape of `weight_v`."""
        return fold_weight(self.weight_g, self.weight_v, self.kind)

    def fold(self) -> Convolution:
        """Build the plain layer with the same output."""
        geometry = {"stride": self.stride, "padding": self.padding}
        if self.kind != "conv2d":
            geometry |= {"dilation": self.dilation, "groups": self.groups}
        return self.plain.from_weight(
            self.effective_weight(), self.get("bias"), file_normed=self.file_normed, **geometry
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
    """Weight-normed 1-D transposed convolution: one magnitude per *input* channel.

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
    """Build a `WeightNormConv1d` or `Conv1d`, as `scheme` has it for this part of the model.

    Args:
        shape: in_channels, out_channels, kernel_size.
    """
    options["file_normed"] = part in NORMED_PARTS["upstream"]
    layer = WeightNormConv1d if part in NORMED_PARTS[scheme] else Conv1d
    return layer(*shape, **options)


def build_conv_transpose1d(
    part: Part, scheme: NormScheme, *shape: int, **options: Any
) -> Convolution:
    """Build a `WeightNormConvTranspose1d` or `ConvTranspose1d`, as `build_conv1d`."""
    options["file_normed"] = part in NORMED_PARTS["upstream"]
    layer = WeightNormConvTranspose1d if part in NORMED_PARTS[scheme] else ConvTranspose1d
    return layer(*shape, **options)
