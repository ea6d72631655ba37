"""Functions with gradients of their own."""

from __future__ import annotations

import threading

import mlx.core as mx

from mlx_vits.nn.gradients import no_gradient, with_gradient


def _slope() -> float:
    square = with_gradient(lambda x: x * x, lambda primal, cotangent, output: 7 * cotangent)
    return float(mx.grad(square)(mx.array(3.0)).item())


def test_a_gradient_of_its_own_is_left_out_where_none_is_asked_for() -> None:
    assert _slope() == 7
    with no_gradient():
        assert _slope() == 6  # MLX's
        with no_gradient(off=False):
            assert _slope() == 6
    with no_gradient(off=False):
        assert _slope() == 7
    assert _slope() == 7


def test_another_thread_keeps_its_gradients() -> None:
    """A voice may speak while another is trained."""
    found: list[float] = []
    with no_gradient():
        thread = threading.Thread(target=lambda: found.append(_slope()))
        thread.start()
        thread.join()
    assert found == [7]
