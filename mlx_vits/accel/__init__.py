"""Backend-specific speed-ups, applied from outside.

Models, losses and the training step are plain MLX, which is what runs on an Apple GPU. This package
substitutes equivalents where they were measured to pay off: convolutions behind `nn/ops.py`; with
`apply`, the forward of known block classes; with `optimize`, the parts of a training step that
cover all tensors of a net; with `inference`, the execution of a function that is never
differentiated. Without it no result changes beyond rounding.

`MLX_VITS_ACCEL=off` selects the plain form everywhere; any other value is ignored. On a CPU that is
slow at full size: minutes per training step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.accel.compilation import stop_fusing
from mlx_vits.accel.custom_vjp import skip_custom_vjp

VARIABLE = "MLX_VITS_ACCEL"

Backend = Literal["off", "cpu", "cuda"]
AnyModule = TypeVar("AnyModule", bound=nn.Module)
_forced: Backend | None = None


class Convolutions(Protocol):
    """A backend's convolutions; arguments as for `mx.conv1d` and `mx.conv_transpose1d`."""

    def conv1d(
        self,
        x: mx.array,
        weight: mx.array,
        stride: int,
        padding: int,
        dilation: int,
        groups: int,
        /,
    ) -> mx.array: ...

    def conv_transpose1d(
        self, x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int, /
    ) -> mx.array: ...


def backend() -> Backend:
    """Return the equivalents in use: "cpu", "cuda", or "off" for plain MLX."""
    if _forced is not None:
        return _forced
    if os.environ.get(VARIABLE) == "off":
        return "off"
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "cuda" if mx.cuda.is_available() else "off"


@contextmanager
def use(name: Backend) -> Iterator[None]:
    """Force the equivalents within a `with` block, for tests and benchmarks."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def convolutions() -> Convolutions | None:
    """Return the backend's convolutions, or None to use MLX's own."""
    name = backend()
    if name == "off":
        return None
    if name == "cpu":
        from mlx_vits.accel.cpu import convolution as module
    else:
        from mlx_vits.accel.cuda import convolution as module  # type: ignore[no-redef]
    found: Any = module
    return found


def apply(model: AnyModule, *, inference: bool = False) -> AnyModule:
    """Swap the forward of a model's blocks for the backend's equivalents.

    Args:
        model: changed in place: its blocks become instances of subclasses with the same
            parameters. Applying it again has no effect.
        inference: whether the model is only for synthesis, with constant weights.

    Returns:
        The model.
    """
    equivalents = _equivalents(inference)
    for module in model.modules():
        fast = equivalents.get(type(module))
        if fast is not None:
            module.__class__ = fast
    return model


def optimize(step: Any) -> None:
    """Swap the parts of a training step that cover all tensors of a net for equivalents.

    Args:
        step: a `GANStep`, changed in place: its optimizers' update, `global_norm`, the losses that
            are sums over sub-discriminators, and the gradient of the pull.
    """
    if backend() != "cuda":
        return
    from mlx_vits.accel.cuda import blocks, pull, training

    groups = [*step.optimizers.generator.optimizers, step.optimizers.discriminator]
    for optimizer in groups:
        optimizer.__class__ = training.FusedAdamW
    step.judged = blocks.judged
    for name in ("global_norm", "discriminator_loss", "generator_loss", "feature_loss"):
        setattr(step, name, getattr(training, name))
    if step.penalty is not None:
        step.penalized = partial(pull.penalized, step)


def inference(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that is never differentiated for faster execution.

    Args:
        function: maps a model, a tree of arrays, and hashable settings to arrays.
    """
    name = backend()
    if name == "off":
        return function
    run = function
    if name == "cuda" and mx.cuda.is_available() and stop_fusing():
        from mlx_vits.accel.cuda.recording import Recorder

        run = Recorder(function)

    def wrapped(*arguments: Any) -> Any:
        with skip_custom_vjp():
            return run(*arguments)

    return wrapped


def _equivalents(inference: bool) -> dict[type, type]:
    """Map block classes to their equivalents on this backend."""
    name = backend()
    if name == "cuda":
        from mlx_vits.accel.cuda import blocks as on_cuda

        return on_cuda.EQUIVALENTS
    if name == "cpu":
        from mlx_vits.accel.cpu import blocks as on_cpu

        return on_cpu.FOR_INFERENCE if inference else on_cpu.EQUIVALENTS
    return {}
