"""CUDA kernels, each in place of two to fourteen of MLX's.

Launching a kernel takes the host longer than the GPU computes, at the sizes of this model, and MLX
launches one for nearly every operation: `mx.compile` would fuse them, but NVRTC compiles every
combination, see `accel/compilation.py`. NVRTC takes seconds for any source, however short, so
everything here is two kernels that branch on a number: one writes a single array, the other two.
`many.py` has those that read many arrays.

All arrays of a call are fp32, or all are bf16: each type has its own two kernels. Gradients are
defined by the callers, in `fused.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_vits import accel
from mlx_vits.accel.cuda.source import BRANCHES, BRANCHES_APART, HEADER

Shape = tuple[int, ...]

TYPES = {mx.float32: "", mx.bfloat16: "_bf16"}  # with what a kernel's name ends
THREADS = 256  # of a block
_OUTPUTS = "to_first", "to_second"  # arrays that a launch writes at most


def is_used(*arrays: mx.array) -> bool:
    """Whether the kernels take these arrays: all fp32 or all bf16, where CUDA is in use."""
    dtype = arrays[0].dtype
    is_one_type = dtype in TYPES and all(array.dtype == dtype for array in arrays)
    return is_one_type and accel.backend() == "cuda" and is_on_cuda()


def is_on_cuda() -> bool:
    """Whether MLX computes on an NVIDIA GPU."""
    return mx.default_device().type == mx.DeviceType.gpu and mx.cuda.is_available()


def leaky_relu(x: mx.array, bias: mx.array, slope: float, shape: Shape | None = None) -> mx.array:
    """Of `x + bias`: `(..., C)` and `(C,)`, or any shape and one number.

    Args:
        shape: what comes out in, here and below; None for that of what went in.
    """
    inputs = {"a": x, "b": bias}
    return _run("leaky_relu", inputs, shape or x.shape, sizes=[bias.size], numbers=[slope])


def leaky_relu_gradient(
    cotangent: mx.array,
    output: mx.array,
    slope: float,
    count: int = 1,
    shape: Shape | None = None,
) -> mx.array:
    """In the sum, or in each of so many whose mean it is of, from what came out."""
    inputs, shape = {"a": cotangent, "b": output}, shape or output.shape
    return _run("leaky_relu_gradient", inputs, shape, sizes=[count], numbers=[slope])


def biased_sum(x: mx.array, y: mx.array, bias: mx.array) -> mx.array:
    """`x + (y + bias)`: `(..., C)` twice and `(C,)`."""
    inputs = {"a": x, "b": y, "c": bias}
    return _run("biased_sum", inputs, x.shape, sizes=[bias.size])


def sum_and_leaky_relu(
    x: mx.array, y: mx.array, bias: mx.array, slope: float, shape: Shape | None = None
) -> tuple[mx.array, mx.array]:
    """`x + (y + bias)` and its leaky ReLU: `(..., C)` twice and `(C,)`; x may be one number."""
    inputs, sizes = {"a": x, "b": y, "c": bias}, [bias.size, x.size]
    shapes = [shape or y.shape] * 2
    both = _run_apart("sum_and_leaky_relu", inputs, shapes, sizes=sizes, numbers=[slope])
    return both[0], both[1]


def sum_and_leaky_relu_gradient(
    of_sum: mx.array,
    of_leaky: mx.array,
    sum_: mx.array,
    slope: float,
    shape: Shape | None = None,
) -> mx.array:
    """In the sum, from the cotangents of both and the sum that came out."""
    inputs = {"a": of_sum, "b": of_leaky, "c": sum_}
    return _run("sum_and_leaky_relu_gradient", inputs, shape or sum_.shape, numbers=[slope])


def mean(arrays: Sequence[mx.array], slope: float) -> mx.array:
    """A leaky ReLU of the mean of one to five arrays of one shape."""
    inputs, sizes = dict(zip("abcde", arrays, strict=False)), [len(arrays)]
    return _run("mean", inputs, arrays[0].shape, sizes=sizes, numbers=[slope])


def gate(x: mx.array, bias: mx.array, condition: mx.array, shape: Shape | None = None) -> mx.array:
    """`tanh(u) * sigmoid(v)` of the halves of the channels of `x + bias + condition`.

    Args:
        x: `(B, T, 2 C)`, or with height 1, `(B, 1, T, 2 C)`.
        bias: `(2 C,)`.
        condition: `(B, 1, 2 C)`.
        shape: what comes out in; None for `(B, T, C)`.
    """
    batch, (length, channels) = len(x), x.shape[-2:]
    shape = shape or (batch, length, channels // 2)
    inputs = {"a": x, "b": bias, "c": condition}
    sizes = [channels // 2, length]
    return _run("gate", inputs, shape, sizes=sizes)


def gate_gradient(
    x: mx.array,
    bias: mx.array,
    condition: mx.array,
    cotangent: mx.array,
    shape: Shape | None = None,
) -> mx.array:
    """In the sum of all three."""
    inputs = {"a": x, "b": bias, "c": condition, "d": cotangent}
    sizes = [x.shape[-1] // 2, x.shape[-2]]
    return _run("gate_gradient", inputs, shape or x.shape, count=cotangent.size, sizes=sizes)


def residual(
    x: mx.array, y: mx.array, mask: mx.array, total: mx.array
) -> tuple[mx.array, mx.array]:
    """`(x + a) * mask` and `total + b`, of the halves a and b of the channels of y.

    Args:
        x: `(B, T, C)`.
        y: `(B, T, 2 C)`, or `(B T, 2 C)`.
        mask: `(B, T, 1)`, or one number.
        total: as `x`, or one number.
    """
    inputs = {"a": x, "b": y, "c": mask, "d": total}
    sizes = [x.shape[2], total.size, int(mask.size > 1)]
    both = _run_apart("residual", inputs, [x.shape] * 2, sizes=sizes)
    return both[0], both[1]


def residual_gradient(
    cotangent: mx.array, of_total: mx.array, mask: mx.array, shape: Shape
) -> tuple[mx.array, mx.array]:
    """In x and in y, which is of this shape."""
    inputs, count = {"a": cotangent, "b": of_total, "c": mask}, cotangent.size
    sizes, shapes = [cotangent.shape[-1], int(mask.size > 1)], [shape, cotangent.shape]
    of_y, of_x = _run_apart("residual_gradient", inputs, shapes, count=count, sizes=sizes)
    return of_x, of_y


def attention(scores: mx.array, band: mx.array, seen: mx.array, hidden: float) -> mx.array:
    """Softmax over the keys that are seen of the scores, with the band of near keys added.

    Args:
        scores: `(B, H, T, S)`.
        band: `(B, H, T, 2 W + 1)`, of keys at the positions -W to W from the query.
        seen: `(B, 1, T, S)`, 0 where a query must not see a key, or one number.
        hidden: the score of what is not seen.
    """
    inputs = {"a": scores, "b": band, "c": seen}
    return _run("attention", inputs, scores.shape, numbers=[hidden], **_of_rows(scores, band, seen))


def attention_gradient(
    cotangent: mx.array, weights: mx.array, seen: mx.array, band: mx.array
) -> tuple[mx.array, mx.array]:
    """In the scores and in the band, from the weights that came out."""
    inputs, shapes = {"a": cotangent, "b": weights, "c": seen}, [weights.shape, band.shape]
    both = _run_apart("attention_gradient", inputs, shapes, **_of_rows(weights, band, seen))
    return both[0], both[1]


def _of_rows(scores: mx.array, band: mx.array, seen: mx.array) -> dict[str, Any]:
    """What both kernels of attention are told."""
    _, heads, length, keys = scores.shape
    sizes = [length, keys, heads, band.shape[-1] // 2, int(seen.size > 1)]
    return {"count": scores.size // keys * THREADS, "sizes": sizes}


def widen(band: mx.array) -> mx.array:
    """`(B, H, T, 2 W + 1)` to `(B, H, T, T)`, zero beyond the band."""
    length, width = band.shape[2:]
    shape = (*band.shape[:3], length)
    sizes = [length, width // 2]
    return _run("widen", {"a": band}, shape, sizes=sizes)


def narrow(square: mx.array, reach: int) -> mx.array:
    """`(B, H, T, T)` to the band `(B, H, T, 2 W + 1)`, zero beyond the ends."""
    shape = (*square.shape[:3], 2 * reach + 1)
    sizes = [square.shape[2], reach]
    return _run("narrow", {"a": square}, shape, sizes=sizes)


def stacked(first: mx.array, second: mx.array, third: mx.array) -> mx.array:
    """Three arrays of one shape, one after the other along the first axis."""
    inputs, shape = {"a": first, "b": second, "c": third}, (3 * len(first), *first.shape[1:])
    return _run("stacked", inputs, shape, sizes=[first.size])


def heads(x: mx.array, count: int, scale: float) -> mx.array:
    """Queries, keys and values of each head, queries times `scale`.

    Args:
        x: `(B, T, 3 C)`, all queries first, then all keys.
        count: H, of heads.

    Returns:
        `(3, B, H, T, C / H)`.
    """
    batch, length, channels = x.shape
    width = channels // 3 // count
    sizes, shape = [length, count, width, batch], (3, batch, count, length, width)
    return _run("heads", {"a": x}, shape, sizes=sizes, numbers=[scale])


def heads_gradient(query: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """In x, `(B T, 3 C)`, from the three cotangents `(B, H, T, C / H)`."""
    batch, count, length, width = query.shape
    inputs, sizes = {"a": query, "b": k, "c": v}, [length, count, width]
    shape = (batch * length, 3 * count * width)
    return _run("heads_gradient", inputs, shape, sizes=sizes, numbers=[scale])


def windows(
    x: mx.array, kernel: int, steps: int, stride: int, dilation: int, padding: int
) -> mx.array:
    """What each step of a convolution of so many taps reads: `(N, T, C)` to `(N steps, K C)`.

    Args:
        x: may have height 1, `(N, 1, T, C)`.
    """
    batch, (length, channels) = len(x), x.shape[-2:]
    sizes = [channels, kernel, length, steps, stride, dilation, padding]
    return _run("windows", {"a": x}, (batch * steps, kernel * channels), sizes=sizes)


def dropout(
    x: mx.array,
    mask: mx.array,
    p: float,
    key: mx.array,
    to: mx.array | None = None,
    bias: mx.array | None = None,
    shape: Shape | None = None,
) -> mx.array:
    """`to` plus dropout of `(x + bias) * mask`, with the elements that `nn/dropout.py` keeps.

    Args:
        x: `(..., C)`.
        mask: `(..., 1)`, or one number.
        p: 0 keeps all, whatever the key.
        key: `(2,)`.
        to: as `x`, or None for 0.
        bias: `(C,)`, or None for 0.
    """
    to = zero(x.dtype) if to is None else to
    bias = zero(x.dtype) if bias is None else bias
    top = np.nextafter(np.float32(2**32), np.float32(np.inf))
    numbers = [float(np.float32(1.0 - p) * top), 1.0 / (1.0 - p)]
    sizes = [x.shape[-1], int(mask.size > 1), to.size, bias.size]
    inputs, shape = {"a": x, "b": mask, "c": to, "d": bias}, shape or x.shape
    return _run("dropout", inputs, shape, sizes=sizes, numbers=numbers, key=key)


def _run(name: str, inputs: dict[str, mx.array], shape: Shape, **given: Any) -> mx.array:
    """The array of this shape that a branch writes; see `_launch`."""
    return _launch(list(BRANCHES).index(name), inputs, [shape], **given)[0]


def _run_apart(
    name: str, inputs: dict[str, mx.array], shapes: Sequence[Shape], **given: Any
) -> list[mx.array]:
    """The two arrays of these shapes that a branch writes; see `_launch`."""
    return _launch(list(BRANCHES_APART).index(name), inputs, shapes, **given)


def _launch(
    branch: int,
    inputs: dict[str, mx.array],
    shapes: Sequence[Shape],
    *,
    count: int | None = None,
    sizes: Sequence[int] = (),
    numbers: Sequence[float] = (),
    key: mx.array | None = None,
) -> list[mx.array]:
    """Arrays of these shapes; a number of the first a thread, unless `count` says how many."""
    dtype, count = inputs["a"].dtype, math.prod(shapes[0]) if count is None else count
    given = [inputs.get(letter, zero(dtype)) for letter in "abcde"]
    others = [
        _sizes((branch, count, *sizes)),
        constants(tuple(numbers) or (0.0,)),
        any_key() if key is None else key,
    ]
    found: list[mx.array] = _kernel(dtype, len(shapes) > 1)(
        inputs=[*given, *others],
        grid=(count, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=list(shapes),
        output_dtypes=[dtype] * len(shapes),
    )
    return found


def zero(dtype: mx.Dtype) -> mx.array:
    """A number for where there is none to add, `(1,)`."""
    return constants((0.0,), dtype)


def one(dtype: mx.Dtype) -> mx.array:
    """A number for where there is no mask, `(1,)`."""
    return constants((1.0,), dtype)


@cache
def _sizes(values: tuple[int, ...]) -> mx.array:
    return mx.array(values, mx.int32)


@cache
def constants(values: tuple[float, ...], dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(values, dtype)


@cache
def any_key() -> mx.array:
    """For where none is needed."""
    return mx.array((0, 0), mx.uint32)


@cache
def _kernel(dtype: mx.Dtype, apart: bool) -> Any:
    """The kernel that writes one array, or the one that writes arrays apart."""
    branches, outputs = (BRANCHES_APART, _OUTPUTS) if apart else (BRANCHES, _OUTPUTS[:1])
    cases = "".join(
        f"case {number}: {{{body}break; }}\n" for number, body in enumerate(branches.values())
    )
    arrays = "".join(f"const auto {letter} = reading(in_{letter});\n" for letter in "abcde")
    writers = zip(("out", "second"), outputs, strict=False)
    arrays += "".join(f"const auto {name} = writing({to});\n" for name, to in writers)
    return mx.fast.cuda_kernel(
        name=f"vits{'_apart' * apart}{TYPES[dtype]}",
        input_names=[*(f"in_{letter}" for letter in "abcde"), "sizes", "numbers", "key"],
        output_names=list(outputs),
        header=short(HEADER),
        source=short(f"""
            const int count = sizes[1];
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i >= count) return;
            {arrays}
            switch (sizes[0]) {{ {cases} }}
        """),
    )


def short(source: str) -> str:
    """Without what is blank: MLX reads through the source at every launch, to find its kernel."""
    return re.sub(r" ?([][{}()<>,;:?=!*/%&|^]) ?", r"\1", " ".join(source.split()))
