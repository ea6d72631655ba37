"""The decoder on a CPU, piece by piece of time, as many pieces at once as there are cores.

MLX's CPU backend hands a product to all cores, and computes everything else on one; whole
activations, 10 MB each, go through memory at every one of its passes. Here a stage of the decoder
takes a piece of time from its input to its output while it fits into a core's cache, on a stream of
its own whose products use one core. A piece reads beyond its ends as far as the convolutions reach,
so that it comes out as it would within the whole. For 4.5 s of speech at full size, on two
cores, it takes 1.2 s in place of 1.6.

Arrays are evaluated on the way: nothing of this can be differentiated or recorded. Axes: B batch,
N steps, C channels in, O out, K taps, G conditioning.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlx_vits.accel.cpu.convolution import sum_of_taps
from mlx_vits.accel.cpu.streams import lanes, one_core_a_product
from mlx_vits.models.generator import LAST_SLOPE, SLOPE, Generator, ResBlock1, mean_of
from mlx_vits.nn.layers import Convolution

_PIECE_ELEMENTS = 230_000  # that come out of a piece, about: 1 MB


class _Piece(NamedTuple):
    """Steps `start` to `end` of `total`."""

    x: mx.array
    start: int
    end: int
    total: int

    def cut(self, start: int, end: int) -> _Piece:
        """Of these steps, as far as there are any."""
        start, end = max(start, 0), min(end, self.total)
        return self._replace(x=self.x[start - self.start : end - self.start], start=start, end=end)

    def within(self, steps: int) -> tuple[int, int]:
        """Start and end of what has so many steps around it, or the whole's own."""
        start = self.start and self.start + steps
        return start, self.end if self.end == self.total else self.end - steps

    def padded(self, steps: int) -> mx.array:
        """With zeros where the whole begins or ends."""
        before, after = steps * (self.start == 0), steps * (self.end == self.total)
        return mx.pad(self.x, [(before, after), (0, 0)]) if before or after else self.x


class _Conv:
    """A convolution as a sum of products of one tap, each `(C, O)` in the order BLAS reads."""

    def __init__(self, layer: Convolution):
        weight = layer.effective_weight()
        self.taps = _apart(weight.transpose(1, 2, 0))
        self.bias: mx.array = layer.get("bias", mx.array(0.0))
        self.reach, self.dilation = layer.padding, layer.dilation

    def __call__(self, piece: _Piece, onto: mx.array | None = None) -> _Piece:
        """A piece that is shorter by the reach wherever it ends within the whole.

        Args:
            piece: `(N, C)`.
            onto: what the result is added to, or None. The bias is left to the caller.
        """
        start, end = piece.within(self.reach)
        y = sum_of_taps(piece.padded(self.reach), self.taps, self.dilation, onto)
        return piece._replace(x=y, start=start, end=end)


class _Up:
    """A transposed convolution: a convolution whose channels are one stride of steps."""

    def __init__(self, layer: Convolution):
        weight = layer.effective_weight()
        outputs, kernel, inputs = weight.shape
        self.stride, self.padding, self.kernel = layer.stride, layer.padding, kernel
        self.blocks = -(-kernel // self.stride)
        weight = mx.pad(weight, [(0, 0), (0, self.blocks * self.stride - kernel), (0, 0)])
        weight = weight.reshape(outputs, self.blocks, self.stride, inputs).transpose(1, 3, 2, 0)
        self.taps = _apart(weight.reshape(self.blocks, inputs, -1)[::-1])
        self.bias = layer["bias"]

    def length(self, steps: int) -> int:
        """Of what comes out of so many steps."""
        return (steps - 1) * self.stride + self.kernel - 2 * self.padding

    def __call__(self, x: mx.array, start: int, end: int) -> _Piece:
        """Steps `start` to `end` of what comes out of all of x `(N, C)`, with the bias."""
        first, last = ((step + self.padding) // self.stride for step in (start, end - 1))
        whole = _Piece(x, 0, len(x), len(x))
        piece = whole.cut(first - self.blocks + 1, last + 1)
        y = sum_of_taps(piece.padded(self.blocks - 1), self.taps)
        y = y.reshape(-1, y.shape[1] // self.stride)
        begins = piece.start and piece.start + self.blocks - 1
        begins = begins * self.stride - self.padding
        y = y[start - begins : end - begins] + self.bias
        return _Piece(y, start, end, self.length(len(x)))


class _Block:
    """`ResBlock1`."""

    def __init__(self, block: ResBlock1):
        self.pairs = [
            (_Conv(dilated), _Conv(plain))
            for dilated, plain in zip(block.convs1, block.convs2, strict=True)
        ]
        self.reach = sum(conv.reach for pair in self.pairs for conv in pair)

    def __call__(self, piece: _Piece, activated: _Piece) -> _Piece:
        for dilated, plain in self.pairs:
            y = dilated(activated)
            y = y._replace(x=_leaky_relu(y.x + dilated.bias, SLOPE))
            onto = piece.cut(*y.within(plain.reach))
            piece = plain(y, onto.x + plain.bias)
            activated = piece._replace(x=_leaky_relu(piece.x, SLOPE))
        return piece


class PiecewiseGenerator(Generator):
    """`Generator`, without gradients; its weights must stay as they are."""

    def __call__(self, z: mx.array, g: mx.array) -> mx.array:
        """`(B, N, C)` and conditioning `(B, 1, G)` to a waveform `(B, N', 1)`, evaluated."""
        pieces = self.__dict__.get("_pieces")
        if pieces is None:
            pieces = self.__dict__["_pieces"] = _Decoder(self, _PIECE_ELEMENTS)
        return pieces(z, g)


class _Decoder:
    """A generator's weights in the order that pieces are computed with.

    Args:
        generator: its weights are copied.
        elements: that come out of a piece, about.
    """

    def __init__(self, generator: Generator, elements: int):
        self._pre, self._cond = generator.conv_pre, generator.cond
        self._elements = elements
        self._ups = [_Up(layer) for layer in generator.ups]
        blocks = [_Block(block) for block in generator.resblocks]
        count = generator.num_kernels
        self._stages = [blocks[at : at + count] for at in range(0, len(blocks), count)]
        self._reaches = [max(block.reach for block in stage) for stage in self._stages]
        self._post = _Conv(generator.conv_post)

    def __call__(self, z: mx.array, g: mx.array) -> mx.array:
        with one_core_a_product():
            x = _leaky_relu(self._pre(z) + self._cond(g), SLOPE)
            clips = [self._decoded(clip) for clip in x]
        return mx.stack(clips)

    def _decoded(self, x: mx.array) -> mx.array:
        """Of one clip."""
        for index in range(len(self._ups)):
            mx.eval(x)
            x = self._stage(index, x)
        mx.eval(x)
        return x

    def _stage(self, index: int, x: mx.array) -> mx.array:
        """`(N, C)` to `(N', O)`, from one stage to what the next reads; behind the last, sound."""
        up, streams = self._ups[index], lanes()
        total, width = up.length(len(x)), up.bias.size
        count = max(1, round(total * width / self._elements / len(streams))) * len(streams)
        count = max(1, min(count, total // (2 * self._reaches[index] + 1)))
        pieces: list[mx.array] = []
        for at in range(count):
            start, end = (total * step // count for step in (at, at + 1))
            with mx.stream(streams[at % len(streams)]):
                pieces.append(self._computed(index, x, start, end))
            if len(pieces) % len(streams) == 0:
                # Together, so that MLX hands them to the streams in turn.
                mx.async_eval(pieces[-len(streams) :])
        return mx.concatenate(pieces)

    def _computed(self, index: int, x: mx.array, start: int, end: int) -> mx.array:
        """Steps `start` to `end` of a stage."""
        up, blocks, is_last = self._ups[index], self._stages[index], index + 1 == len(self._ups)
        total, more = up.length(len(x)), self._post.reach if is_last else 0
        inner, reach = (max(start - more, 0), min(end + more, total)), self._reaches[index]
        piece = up(x, max(inner[0] - reach, 0), min(inner[1] + reach, total))
        activated = piece._replace(x=_leaky_relu(piece.x, SLOPE))
        outputs: list[mx.array] = []
        for block in blocks:
            span = inner[0] - block.reach, inner[1] + block.reach
            outputs.append(block(piece.cut(*span), activated.cut(*span)).x)
        y = _leaky_relu(mean_of(outputs), LAST_SLOPE if is_last else SLOPE)
        if not is_last:
            return y
        return mx.tanh(self._post(_Piece(y, *inner, total)).x + self._post.bias)


def _leaky_relu(x: mx.array, slope: float) -> mx.array:
    """Like `nn.leaky_relu`, which MLX would compile, with g++, in the first sentence."""
    return mx.maximum(x, slope * x)


def _apart(taps: mx.array) -> list[mx.array]:
    """`(K, C, O)` to K arrays."""
    apart = list(mx.contiguous(taps))
    mx.eval(apart)
    return apart
