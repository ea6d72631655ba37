"""Kernels of our own for CUDA, each in place of two to fourteen of MLX's.

Launching one takes the host longer than the GPU computes, at the sizes of this model, and MLX
launches one for nearly every operation: `mx.compile` would put them together, but has NVRTC compile
every combination, see `compilation.py`. NVRTC takes seconds for any source, however short,
so all that is computed here are two kernels, which branch on a number, and `join`. One writes an
array, the other one two or three: as parts of one array they would take MLX an operation each.

All arrays of one call are fp32, or all are bf16: each type has these three kernels. There is no
gradient but what the callers define.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_vits.accel.cuda.source import BRANCHES, BRANCHES_APART, HEADER

Shape = tuple[int, ...]

USED = True  # False: CUDA computes as all other devices do

_TYPES = {mx.float32: "", mx.bfloat16: "_bf16"}  # with what a kernel's name ends
_THREADS = 256  # of a block
_JOINED = 32  # arrays that one launch joins
_APART = "to_first", "to_second", "to_third"  # arrays that one launch writes at most
_SEGMENT = 8192  # elements that a block adds up


def is_used(*arrays: mx.array) -> bool:
    """Whether these arrays are computed on by the kernels of this module."""
    if not (USED and is_on_cuda()):
        return False
    dtype = arrays[0].dtype
    return dtype in _TYPES and all(array.dtype == dtype for array in arrays)


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


def norm_of_sum(
    x: mx.array, y: mx.array, bias: mx.array, gamma: mx.array, beta: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """Layer norm of `x + (y + bias)`, and the sum.

    Args:
        x, y: `(..., C)`.
        bias: `(C,)`, or one number.
        gamma, beta: `(C,)`, fp32.
    """
    width = x.shape[-1]
    normed, total = _run_apart(
        "norm_of_sum",
        {"a": x, "b": y, "c": bias},
        [x.shape] * 2,
        count=x.size // width * _THREADS,
        sizes=[width, bias.size, round(1 / eps)],
        numbers=gamma,
        more=beta,
    )
    return normed, total


def attention(
    scores: mx.array, band: mx.array, seen: mx.array, hidden: float, scale: float
) -> mx.array:
    """Softmax over the keys of what is seen, with the band of near keys added, both scaled.

    Args:
        scores: `(B, H, T, S)`.
        band: `(B, H, T, 2 W + 1)`, of keys at the positions -W to W from the query.
        seen: `(B, 1, T, S)`, 0 where a query must not see a key, or one number.
        hidden: the score of what is not seen.
    """
    inputs, numbers = {"a": scores, "b": band, "c": seen}, (hidden, scale)
    return _run("attention", inputs, scores.shape, numbers=numbers, **_of_rows(scores, band, seen))


def attention_gradient(
    cotangent: mx.array, weights: mx.array, seen: mx.array, band: mx.array, scale: float
) -> tuple[mx.array, mx.array]:
    """In the scores and in the band, from the weights that came out."""
    inputs, shapes = {"a": cotangent, "b": weights, "c": seen}, [weights.shape, band.shape]
    of_rows = _of_rows(weights, band, seen)
    both = _run_apart("attention_gradient", inputs, shapes, numbers=(scale,), **of_rows)
    return both[0], both[1]


def _of_rows(scores: mx.array, band: mx.array, seen: mx.array) -> dict[str, Any]:
    """What both kernels of attention are told."""
    _, heads, length, keys = scores.shape
    sizes = [length, keys, heads, band.shape[-1] // 2, int(seen.size > 1)]
    return {"count": scores.size // keys * _THREADS, "sizes": sizes}


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


def heads(x: mx.array, bias: mx.array, count: int) -> list[mx.array]:
    """`x + bias` as queries, keys and values: `(B, T, 3 C)` and `(3 C,)` to thrice `(B, H, T, D)`.

    Args:
        count: H; head h has channels h D to (h + 1) D of each C.
    """
    batch, length, channels = x.shape
    sizes = [channels // 3 // count, length, count]
    shape = (batch, count, length, channels // 3 // count)
    return _run_apart("heads", {"a": x, "b": bias}, [shape] * 3, sizes=sizes)


def merge_heads(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """The inverse: thrice `(B, H, T, D)` to `(B, T, 3 C)`."""
    batch, count, length, size = queries.shape
    inputs, sizes = {"a": queries, "b": keys, "c": values}, [size, length, count]
    return _run("merge_heads", inputs, (batch, length, 3 * count * size), sizes=sizes)


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
    x: mx.array, bias: mx.array, mask: mx.array, p: float, keys: mx.array, start: int = 0
) -> mx.array:
    """`(x + bias) * mask`, zeroed where `mx.random.bernoulli(1 - p, x.shape, key)` is, else scaled.

    Args:
        x: `(..., C)`.
        bias: `(C,)`, or one number.
        mask: `(..., 1)`, or one number.
        keys: the key is of two numbers from `start` on.
    """
    top = np.nextafter(np.float32(2**32), np.float32(np.inf))
    numbers = [float(np.float32(1.0 - p) * top), 1.0 / (1.0 - p)]
    inputs = {"a": x, "b": bias, "c": mask}
    sizes = [bias.size, x.shape[-1], int(mask.size > 1), start]
    return _run("dropout", inputs, x.shape, sizes=sizes, numbers=numbers, key=keys)


def adamw(
    parameter: mx.array,
    gradient: mx.array,
    moments: tuple[mx.array, mx.array],
    factors: mx.array,
    betas: tuple[float, float],
    eps: float,
) -> tuple[mx.array, mx.array, mx.array]:
    """The parameter and both moments after a step.

    Args:
        factors: `(3,)`, of the parameter, the first moment and the root of the second.
    """
    (b1, b2), (m, v) = betas, moments
    inputs = {"a": parameter, "b": gradient, "c": m, "d": v, "e": factors}
    numbers = [b1, 1 - b1, b2, 1 - b2, eps]
    parameter, m, v = _run_apart("adamw", inputs, [parameter.shape] * 3, numbers=numbers)
    return parameter, m, v


def fold(g: mx.array, v: mx.array, start: int = 0) -> tuple[mx.array, mx.array]:
    """`g * v / |v|` of each row `(R, W)`, and the lengths |v| `(R, 1)`.

    Args:
        g: a column, whose rows from `start` on are those of v.
    """
    return _fold("fold", {"a": g, "b": v}, v.shape, start)


def fold_gradient(
    g: mx.array, v: mx.array, length: mx.array, cotangent: mx.array, start: int = 0
) -> tuple[mx.array, mx.array]:
    """In v `(R, W)` and in its rows of g `(R, 1)`."""
    inputs = {"a": g, "b": v, "c": cotangent, "d": length}
    return _fold("fold_gradient", inputs, v.shape, start)


def _fold(
    name: str, inputs: dict[str, mx.array], shape: Shape, start: int
) -> tuple[mx.array, mx.array]:
    rows, width = shape
    shapes, count = [shape, (rows, 1)], rows * _THREADS
    both = _run_apart(name, inputs, shapes, count=count, sizes=[width, start])
    return both[0], both[1]


def squares(x: mx.array) -> mx.array:
    """The squares of an array, added up in part: `(S,)`."""
    segments = -(-x.size // _SEGMENT)
    sizes = [x.size, _SEGMENT]
    return _run("squares", {"a": x}, (segments,), count=segments * _THREADS, sizes=sizes)


def distance(x: mx.array, y: mx.array, weight: float) -> mx.array:
    """`weight * |x - y|` of arrays of one shape, added up in part: `(S,)`, fp32."""
    segments = -(-x.size // _SEGMENT)
    inputs, sizes = {"a": x, "b": y}, [x.size, _SEGMENT]
    shape, threads = (segments * mx.float32.size // x.dtype.size,), segments * _THREADS
    found = _run("distance", inputs, shape, count=threads, sizes=sizes, numbers=[weight])
    return found.view(mx.float32)


def error(x: mx.array, target: float, weight: float) -> mx.array:
    """`weight * (x - target)^2` of an fp32 array, added up in part: `(S,)`, `()` for all of it."""
    segments = -(-x.size // _SEGMENT)
    threads, sizes, numbers = segments * _THREADS, [x.size, _SEGMENT], [target, weight]
    shape = (segments,) if segments > 1 else ()
    return _run("error", {"a": x}, shape, count=threads, sizes=sizes, numbers=numbers)


def error_gradient(x: mx.array, cotangent: mx.array, target: float, weight: float) -> mx.array:
    """From the cotangent `()` of the whole sum."""
    inputs = {"a": x, "b": cotangent}
    return _run("error_gradient", inputs, x.shape, numbers=[target, weight])


def distance_gradient(x: mx.array, y: mx.array, cotangent: mx.array, weight: float) -> mx.array:
    """In y, from the cotangent `()` of the whole sum, which is fp32 whatever they are."""
    inputs = {"a": x, "b": y}
    return _run("distance_gradient", inputs, y.shape, numbers=[weight], more=cotangent)


def _run(name: str, inputs: dict[str, mx.array], shape: Shape, **given: Any) -> mx.array:
    """The array of this shape that a branch writes; see `_launch`."""
    return _launch(list(BRANCHES).index(name), inputs, [shape], **given)[0]


def _run_apart(
    name: str, inputs: dict[str, mx.array], shapes: Sequence[Shape], **given: Any
) -> list[mx.array]:
    """The arrays of these shapes, two or three, that a branch writes; see `_launch`."""
    missing = [(1,)] * (len(_APART) - len(shapes))
    found = _launch(list(BRANCHES_APART).index(name), inputs, [*shapes, *missing], **given)
    return found[: len(shapes)]


def _launch(
    branch: int,
    inputs: dict[str, mx.array],
    shapes: Sequence[Shape],
    *,
    count: int | None = None,
    sizes: Sequence[int] = (),
    numbers: Sequence[float] | mx.array = (),
    more: mx.array | None = None,
    key: mx.array | None = None,
) -> list[mx.array]:
    """Arrays of these shapes; a number of the first a thread, unless `count` says how many."""
    dtype, count = inputs["a"].dtype, math.prod(shapes[0]) if count is None else count
    given = [inputs.get(letter, zero(dtype)) for letter in "abcde"]
    if not isinstance(numbers, mx.array):
        numbers = _numbers(tuple(numbers) or (0.0,))
    more = _numbers((0.0,)) if more is None else more
    others = [_sizes((branch, count, *sizes)), numbers, more, _key() if key is None else key]
    found: list[mx.array] = _kernel(dtype, len(shapes) > 1)(
        inputs=[*given, *others],
        grid=(count, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=list(shapes),
        output_dtypes=[dtype] * len(shapes),
    )
    return found


def zero(dtype: mx.Dtype) -> mx.array:
    """A number for where there is none to add, `(1,)`."""
    return _numbers((0.0,), dtype)


def one(dtype: mx.Dtype) -> mx.array:
    """A number for where there is no mask, `(1,)`."""
    return _numbers((1.0,), dtype)


@cache
def _sizes(values: tuple[int, ...]) -> mx.array:
    return mx.array(values, mx.int32)


@cache
def _numbers(values: tuple[float, ...], dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(values, dtype)


@cache
def _key() -> mx.array:
    return mx.array((0, 0), mx.uint32)


@cache
def _kernel(dtype: mx.Dtype, apart: bool) -> Any:
    """The kernel that writes one array, or the one that writes arrays apart."""
    branches, outputs = (BRANCHES_APART, _APART) if apart else (BRANCHES, _APART[:1])
    cases = "".join(
        f"case {number}: {{{body}break; }}\n" for number, body in enumerate(branches.values())
    )
    arrays = "".join(f"const auto {letter} = reading(in_{letter});\n" for letter in "abcde")
    writers = zip(("out", "second", "third"), outputs, strict=False)
    arrays += "".join(f"const auto {name} = writing({to});\n" for name, to in writers)
    return mx.fast.cuda_kernel(
        name=f"vits{'_apart' * apart}{_TYPES[dtype]}",
        input_names=[*(f"in_{letter}" for letter in "abcde"), "sizes", "numbers", "more", "key"],
        output_names=list(outputs),
        header=_short(HEADER),
        source=_short(f"""
            const int count = sizes[1];
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i >= count) return;
            {arrays}
            switch (sizes[0]) {{ {cases} }}
        """),
    )


def join(arrays: Sequence[mx.array], shape: Shape | None = None) -> mx.array:
    """The elements of all arrays one after another, in this shape; None for `(N,)`."""
    shape = shape or (sum(array.size for array in arrays),)
    while len(arrays) > _JOINED:
        few = [arrays[first : first + _JOINED] for first in range(0, len(arrays), _JOINED)]
        arrays = [join(some) for some in few]
    return _join(arrays, shape)


def _join(arrays: Sequence[mx.array], shape: Shape) -> mx.array:
    if len(arrays) == 1:
        return arrays[0].reshape(shape)
    ends = np.cumsum([array.size for array in arrays]).tolist()
    missing = _JOINED - len(arrays)
    dtype = arrays[0].dtype
    (out,) = _joining(dtype)(
        inputs=[*arrays, *[arrays[0]] * missing, _sizes((*ends, *[ends[-1]] * missing))],
        grid=(ends[-1], 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[shape],
        output_dtypes=[dtype],
    )
    return out


@cache
def _joining(dtype: mx.Dtype) -> Any:
    """Each thread finds the array that its element is of."""
    names = [f"in{number:02}" for number in range(_JOINED)]
    steps = "".join(
        f"if (i >= ends[{number - 1}]) {{ from = {name}; start = ends[{number - 1}]; }}\n"
        for number, name in enumerate(names[1:], start=1)
    )
    return mx.fast.cuda_kernel(
        name=f"vits_join{_TYPES[dtype]}",
        input_names=[*names, "ends"],
        output_names=["out"],
        source=_short(f"""
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i >= ends[{_JOINED - 1}]) return;
            auto from = {names[0]};
            int start = 0;
            {steps}
            out[i] = from[i - start];
        """),
    )


def _short(source: str) -> str:
    """Without what is blank: MLX reads through the source at every launch, to find its kernel."""
    return re.sub(r" ?([][{}()<>,;:?=!*/%&|^]) ?", r"\1", " ".join(source.split()))
