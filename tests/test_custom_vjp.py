"""Hand-written VJPs."""

from __future__ import annotations

import threading

import mlx.core as mx

from mlx_vits.accel.custom_vjp import custom_vjp, skip_custom_vjp


def _slope() -> float:
    square = custom_vjp(lambda x: x * x, lambda primal, cotangent, output: 7 * cotangent)
    return float(mx.grad(square)(mx.array(3.0)).item())


def test_it_is_bypassed_within_a_block() -> None:
    assert _slope() == 7
    with skip_custom_vjp():
        assert _slope() == 6  # MLX's
    assert _slope() == 7


def test_another_thread_keeps_its_gradients() -> None:
    """A voice may speak while another is trained."""
    found: list[float] = []
    with skip_custom_vjp():
        thread = threading.Thread(target=lambda: found.append(_slope()))
        thread.start()
        thread.join()
    assert found == [7]
