"""Equivalents of blocks on CUDA, whose forward runs the fused kernels.

Each subclass has its block's parameters, arguments and results. Where the arrays are not of one
type that the kernels take, it runs the plain forward. Convolutions inside a block are planar, of
height 1: `(B, 1, N, C)`, so that no view is needed between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.accel.cuda import fused, kernels
from mlx_vits.accel.cuda.kernels import is_used
from mlx_vits.models.discriminator import SLOPE as SLOPE_D
from mlx_vits.models.discriminator import (
    DiscriminatorOutput,
    DiscriminatorP,
    DiscriminatorS,
    reflect_to_multiple,
)
from mlx_vits.models.generator import LAST_SLOPE, SLOPE, Generator, ResBlock1
from mlx_vits.nn.attention import FFN, MASKED_SCORE, Encoder, MultiHeadAttention
from mlx_vits.nn.dropout import Key, dropout
from mlx_vits.nn.layers import Convolution
from mlx_vits.nn.masking import masked
from mlx_vits.nn.ops import conv1d
from mlx_vits.nn.wavenet import WN
from mlx_vits.nn.weight_norm import WeightNormed

Parameters = tuple[mx.array, mx.array | None]


def _geometry(layer: Convolution) -> fused.Geometry:
    return fused.Geometry(layer.stride, layer.padding, layer.dilation)


def _parameters(layers: Sequence[Convolution]) -> list[Parameters]:
    """Weight and bias of each layer, as `parameters_in_use`; weight norm of all at once."""
    normed = [layer for layer in layers if isinstance(layer, WeightNormed)]
    g, v = [_norms(layer) for layer in normed], [_directions(layer) for layer in normed]
    if not normed or g[0].dtype != mx.float32 or not is_used(*g, *v):
        return [layer.parameters_in_use() for layer in layers]
    weights = iter(fused.fold(*g, *v)[: len(g)])
    found = []
    for layer in layers:
        weight = layer["weight"] if "weight" in layer else next(weights)
        if layer.kind == "conv_transpose1d" and "weight" not in layer:
            weight = weight.transpose(1, 2, 0)
        bias, dtype = layer.get("bias"), layer.compute_dtype
        found.append((weight.astype(dtype), None if bias is None else bias.astype(dtype)))
    return found


def _norms(layer: WeightNormed) -> mx.array:
    """`(R, 1, 1)`, or `(R, 1, 1, 1)`."""
    g = layer.weight_g
    return g.reshape(-1, 1, 1) if layer.kind == "conv_transpose1d" else g


def _directions(layer: WeightNormed) -> mx.array:
    """One row for each norm: `(R, ...)`."""
    v = layer.weight_v
    return v.transpose(2, 0, 1) if layer.kind == "conv_transpose1d" else v


def _convolve(layer: Convolution, parameters: Parameters, x: mx.array) -> mx.array:
    """A layer's output `(N, T, C)`, columns in the batch where it has them."""
    weight, bias = parameters
    weight = weight.squeeze(2) if weight.ndim == 4 else weight
    at = _geometry(layer)._asdict()
    return conv1d(x.astype(weight.dtype), weight, bias, **at, groups=layer.groups)


def _leaky(layer: Convolution, parameters: Parameters, x: mx.array, slope: float) -> mx.array:
    """Leaky ReLU of a layer's output.

    Args:
        x: `(N, T, C)`, or planar where the layer has one group.
    """
    weight, bias = parameters
    x = x.astype(weight.dtype)
    if layer.groups == 1:
        return fused.leaky_convolution(_geometry(layer), slope)(x, weight, bias)
    assert bias is not None
    return fused.leaky_relu(slope)(_convolve(layer, (weight, None), x), bias)


def _drop(x: mx.array, p: float, key: Key, mask: mx.array | None = None) -> mx.array:
    """Dropout of `x * mask`."""
    if key is None or p == 0.0 or not is_used(x):
        return masked(dropout(x, p, key), mask)
    seen = kernels.one(x.dtype) if mask is None else mask.astype(x.dtype)
    return fused.dropout(p)(x, seen, key)


def _add_dropped(x: mx.array, y: mx.array, p: float, key: Key) -> mx.array:
    """`x` plus dropout of `y`."""
    if key is None or p == 0.0 or not is_used(x, y):
        return x + dropout(y, p, key)
    return fused.added_dropout(p)(x, y, kernels.one(x.dtype), key)


class FusedResBlock1(ResBlock1):
    """`ResBlock1`, planar: a leaky ReLU comes out of the same kernel as the sum before it."""

    def __call__(self, x: mx.array, activated: mx.array | None = None) -> mx.array:
        """`(B, N, C)` to `(B, N, C)`, or planar.

        Args:
            activated: leaky ReLU of x, which all blocks of a stage share.
        """
        parameters = _parameters([*self.convs1, *self.convs2])
        if not is_used(x, parameters[0][0]):
            return super().__call__(x)
        if activated is None:
            activated = nn.leaky_relu(x, SLOPE)
        count = len(self.convs1)
        for index, (dilated, plain) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            y = _leaky(dilated, parameters[index], activated, SLOPE)
            parts, at = (x, y, *parameters[count + index]), _geometry(plain)
            if plain is self.convs2[-1]:
                x = fused.added_convolution(at)(*parts)
            else:
                x, activated = fused.added_leaky_convolution(at, SLOPE)(*parts)
        return x


class FusedGenerator(Generator):
    """`Generator`, planar between its first and its last convolution."""

    def __call__(self, z: mx.array, g: mx.array) -> mx.array:
        """`(B, T, C)` and conditioning `(B, 1, G)` to a waveform `(B, N, 1)`."""
        x = self.conv_pre(z) + self.cond(g)
        if not (is_used(x) and 2 <= self.num_kernels <= 5):
            return super().__call__(z, g)
        activated = nn.leaky_relu(x, SLOPE)[:, None]
        slopes = [SLOPE] * (len(self.ups) - 1) + [LAST_SLOPE]
        stages = zip(self.ups, _parameters(self.ups), slopes, strict=True)
        for stage, (up, (weight, bias), slope) in enumerate(stages):
            assert bias is not None
            geometry = (1, up.stride), (0, up.padding), (1, up.dilation)
            y = mx.conv_transpose2d(activated, weight[:, None], *geometry)
            x, activated = fused.sum_and_leaky_relu(SLOPE)(y, bias)
            first = stage * self.num_kernels
            blocks: Any = self.resblocks[first : first + self.num_kernels]
            activated = fused.leaky_mean(slope)(*(block(x, activated) for block in blocks))
        return mx.tanh(self.conv_post(activated.squeeze(1)))


class FusedDiscriminatorS(DiscriminatorS):
    """`DiscriminatorS`: a kernel for the bias and the leaky ReLU."""

    def __call__(self, x: mx.array) -> DiscriminatorOutput:
        """A waveform `(B, N, 1)`."""
        if not is_used(x):
            return super().__call__(x)
        features, (*parameters, last) = [], _parameters([*self.convs, self.conv_post])
        for conv, own in zip(self.convs, parameters, strict=True):
            x = _leaky(conv, own, x, SLOPE_D)
            features.append(x)
        x = _convolve(self.conv_post, last, x)
        features.append(x)
        return DiscriminatorOutput(x.reshape(x.shape[0], -1), features)


class FusedDiscriminatorP(DiscriminatorP):
    """`DiscriminatorP`, planar: a kernel for the bias and the leaky ReLU."""

    def __call__(self, x: mx.array) -> DiscriminatorOutput:
        """A waveform `(B, N, 1)`."""
        if not is_used(x):
            return super().__call__(x)
        batch, x = len(x), _columns(x, self.period)
        features, (*parameters, last) = [], _parameters([*self.convs, self.conv_post])
        for conv, own in zip(self.convs, parameters, strict=True):
            x = _leaky(conv, own, x, SLOPE_D)
            features.append(x.squeeze(1))
        x = _convolve(self.conv_post, last, features[-1])
        features.append(x)
        return DiscriminatorOutput(_scores(self, x, batch), features)


def judged(
    net: DiscriminatorS | DiscriminatorP, real: mx.array, fake: mx.array
) -> list[DiscriminatorOutput]:
    """`training.step.judged`: both in one batch, the gradient of the generated half alone."""
    is_fused = isinstance(net, FusedDiscriminatorS | FusedDiscriminatorP)
    if not (is_fused and is_used(real, fake)):
        return [net(real), net(fake)]
    layers = [*net.convs, net.conv_post]
    slopes = [SLOPE_D] * len(net.convs) + [1.0]  # none after the last
    both, half = mx.stop_gradient(mx.concatenate([real, fake])), fake
    if isinstance(net, DiscriminatorP):
        both, half = _columns(both, net.period), _columns(half, net.period)
    of_real, of_fake = [], []
    for layer, (weight, bias), slope in zip(layers, _parameters(layers), slopes, strict=True):
        run = fused.leaky_of_both(_linear(layer), slope)
        both, half = run(half.astype(weight.dtype), both.astype(weight.dtype), weight, bias)
        real_half = mx.split(both, 2)[0]
        of_real.append(real_half.squeeze(1) if both.ndim == 4 else real_half)
        of_fake.append(half.squeeze(1) if both.ndim == 4 else half)
    return [
        DiscriminatorOutput(_scores(net, maps[-1], len(real)), maps) for maps in (of_real, of_fake)
    ]


def _columns(x: mx.array, period: int) -> mx.array:
    """A waveform `(B, N, 1)` to planar columns `(B P, 1, H, 1)`."""
    x = reflect_to_multiple(x.squeeze(-1), period)
    return x.reshape(len(x), -1, period).swapaxes(1, 2).reshape(len(x) * period, 1, -1, 1)


def _scores(net: DiscriminatorS | DiscriminatorP, x: mx.array, batch: int) -> mx.array:
    """`(B, scores)` of the last feature map."""
    if isinstance(net, DiscriminatorP):
        x = x.reshape(batch, net.period, -1).swapaxes(1, 2)
    return x.reshape(batch, -1)


def _linear(layer: Convolution) -> Callable[[mx.array, mx.array], mx.array]:
    """A layer's output without its bias, planar where the input is."""
    at = _geometry(layer)

    def run(x: mx.array, weight: mx.array) -> mx.array:
        if layer.groups > 1:
            return _convolve(layer, (weight, None), x)
        y = at.convolve(x, weight)
        return y.squeeze(1) if x.ndim == 3 else y

    return run


class FusedWN(WN):
    """`WN`: one kernel for a gate, one for what a layer passes on."""

    def __call__(self, x: mx.array, mask: mx.array | None, g: mx.array) -> mx.array:
        """`(B, T, C)`, mask `(B, T, 1)` and conditioning `(B, 1, G)` to `(B, T, C)`."""
        count = len(self.in_layers)
        parameters = _parameters([*self.in_layers, *self.res_skip_layers, self.cond_layer])
        x = x.astype(parameters[0][0].dtype)
        if not is_used(x):
            return super().__call__(x, mask, g)
        seen = kernels.one(x.dtype) if mask is None else mask.astype(x.dtype)
        total = kernels.zero(x.dtype)
        conditions = _split_evenly(_convolve(self.cond_layer, parameters[-1], g), count)
        for index, (conv, condition) in enumerate(zip(self.in_layers, conditions, strict=True)):
            weight, bias = parameters[count + index]
            gated = fused.gated_product(_geometry(conv))
            y = gated(x, *parameters[index], condition, weight.squeeze(1), bias)[0]
            if index + 1 < count:
                x, total = fused.residual(x, y, seen, total)
        return masked(total + y.reshape(x.shape), mask)


def _split_evenly(x: mx.array, count: int) -> list[mx.array]:
    """`(B, 1, count C)` to as many `(B, 1, C)`, each in one piece: a slice would be copied."""
    rows = x.reshape(len(x), count, -1).swapaxes(0, 1)
    return [part.reshape(len(x), 1, -1) for part in mx.split(mx.contiguous(rows), count)]


class FusedAttention(MultiHeadAttention):
    """`MultiHeadAttention`: kernels for the softmax and the band of near keys.

    Attending to itself, one product for queries, keys and values.
    """

    def __call__(
        self, x: mx.array, c: mx.array, mask: mx.array | None, key: Key = None
    ) -> mx.array:
        """`(B, T, C)`, `(B, S, C)` and a mask `(B, 1, T, S)` to `(B, T, C)`."""
        layers = self.conv_q, self.conv_k, self.conv_v
        weights = [layer.effective_weight() for layer in layers]
        dtype = self.conv_q.compute_dtype
        if x is not c or self.window_size is None or not is_used(*weights):
            return super().__call__(x, c, mask, key)
        weight = fused.stacked(*weights).squeeze(1).astype(dtype)
        bias = fused.stacked(*(layer["bias"] for layer in layers)).astype(dtype)
        query, k, v = fused.projected_heads(self.n_heads)(x.astype(dtype), weight, bias)
        attended = self._attend_with_positions(query, k, v, mask, key)
        return self.conv_o(fused.joined_heads(attended))

    def _attend_with_positions(
        self, query: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, key: Key
    ) -> mx.array:
        if not is_used(query):
            return super()._attend_with_positions(query, k, v, mask, key)
        emb_k, emb_v = (
            emb.squeeze(0).astype(query.dtype) for emb in (self.emb_rel_k, self.emb_rel_v)
        )
        # Products of rows: the gradient of one in batches is summed over these.
        band = query.reshape(-1, query.shape[-1]) @ emb_k.T
        scores, band = query @ k.swapaxes(-1, -2), band.reshape(*query.shape[:3], -1)
        seen = kernels.one(query.dtype) if mask is None else mask.astype(query.dtype)
        weights = fused.attention(MASKED_SCORE)(scores, band, seen)
        weights = _drop(weights, self.p_dropout, key)
        near = fused.narrow(self.window_size or 0)(weights).reshape(-1, len(emb_v))
        attended = (weights @ v).reshape(len(near), -1)
        return mx.addmm(attended, near, emb_v).reshape(query.shape)


class FusedFFN(FFN):
    """`FFN`: a kernel for the bias and the ReLU, one for dropout and the mask."""

    def __call__(self, x: mx.array, mask: mx.array | None, key: Key = None) -> mx.array:
        """`(B, T, C)` and a mask `(B, T, 1)` to `(B, T, C)`."""
        parameters = self.conv_1.parameters_in_use()
        x = masked(x, mask).astype(parameters[0].dtype)
        if not is_used(x):
            return super().__call__(x, mask, key)
        x = _drop(_leaky(self.conv_1, parameters, x, 0.0), self.p_dropout, key, mask)
        return masked(self.conv_2(x), mask)

    def added_to(
        self, x: mx.array, mask: mx.array | None, key: Key, p: float, last: Key
    ) -> mx.array:
        """`x` plus dropout, by the last key, of what calling it gives."""
        parameters, (weight, bias) = (
            conv.parameters_in_use() for conv in (self.conv_1, self.conv_2)
        )
        if not (weight.dtype == x.dtype and is_used(x)) or bias is None:
            return x + _drop(self(x, mask, key), p, last)
        y = _leaky(self.conv_1, parameters, masked(x, mask), 0.0)
        y = _drop(y, self.p_dropout, key, mask)
        seen = kernels.one(x.dtype) if mask is None else mask.astype(x.dtype)
        p, last = (0.0, kernels.any_key()) if last is None else (p, last)
        return fused.added_dropped_convolution(_geometry(self.conv_2), p)(
            x, y, weight, bias, seen, last
        )


class FusedEncoder(Encoder):
    """`Encoder`: a kernel for dropout."""

    def _add(self, x: mx.array, y: mx.array, key: Key) -> mx.array:
        return _add_dropped(x, y, self.p_dropout, key)

    def _add_ffn(
        self, x: mx.array, ffn: FFN, mask: mx.array | None, within: Key, after: Key
    ) -> mx.array:
        if type(ffn) is FusedFFN:  # not one whose activations are computed again
            return ffn.added_to(x, mask, within, self.p_dropout, after)
        return super()._add_ffn(x, ffn, mask, within, after)


EQUIVALENTS: dict[type, type] = {
    ResBlock1: FusedResBlock1,
    Generator: FusedGenerator,
    DiscriminatorS: FusedDiscriminatorS,
    DiscriminatorP: FusedDiscriminatorP,
    WN: FusedWN,
    MultiHeadAttention: FusedAttention,
    FFN: FusedFFN,
    Encoder: FusedEncoder,
}
