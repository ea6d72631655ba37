"""ScaledAdam against the original's numbers, and where it differs from the original on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits.checkpoints.run import Place, read_run_state, write_run_state
from mlx_vits.training.scaled_adam import ScaledAdam, ScaledAdamOptions
from mlx_vits.training.stacks import plan_stacks
from tests.support.goldens import assert_close, assert_near, tensors

# In the order in which the original stacks them: those of equal shape in one array.
NAMES = ("scalar", "vec", "vec2", "mat", "scalar_hi", "tiny", "big")
STACKS = (("scalar", "scalar_hi"), ("vec", "vec2"), ("mat",), ("tiny",), ("big",))


@pytest.mark.parametrize(
    ("run", "period", "later_rate"),
    [("period1000", 1000, 0.002), ("period20", 20, 0.002), ("period20_lr01", 20, 0.01)],
)
def test_every_step_is_that_of_the_original(run: str, period: int, later_rate: float) -> None:
    golden = tensors("t2s_train", "scaled_adam_unit.safetensors")
    optimizer = ScaledAdam(0.01, ScaledAdamOptions(clipping_update_period=period), compat=True)
    parameters = {name: golden[f"in/p0/{name}"] for name in NAMES}
    history, factors = [], []
    for step in range(120):
        gradients = {name: golden[f"in/grad/{name}"][step] for name in NAMES}
        parameters = optimizer.apply_gradients(gradients, parameters)
        optimizer.learning_rate = later_rate
        mx.eval(parameters, optimizer.state)
        history.append(parameters)
        factors.append(optimizer.state["clip_factor"].item())
    assert_close(factors, golden[f"{run}/clip"], rtol=1e-5)
    for name in NAMES:
        theirs = golden[f"{run}/p/{name}"]
        is_whole = theirs.ndim > history[-1][name].ndim
        ours = mx.stack([at[name] for at in history]) if is_whole else history[-1][name]
        assert_near(ours, theirs, 1e-5)
    plan, first = plan_stacks(parameters), 0
    assert {stack.paths for stack in plan} == {tuple(sorted(names)) for names in STACKS}
    for index, (names, _) in enumerate(plan):
        stack = next(stack for stack in STACKS if set(stack) == set(names))
        order = [names.index(name) for name in stack]
        for key in ("delta", "exp_avg_sq"):
            theirs = golden[f"{run}/state/{stack[0]}/{key}"]
            ours = optimizer.state[key][index][mx.array(order)]
            assert_near(ours.reshape(theirs.shape), theirs, 1e-5)
        places = mx.array([first + place for place in order])
        has_size = stack[0] != "scalar"
        for key in ("param_rms", "scale_exp_avg_sq", "scale_grads") if has_size else ():
            theirs = golden[f"{run}/state/{stack[0]}/{key}"]
            ours = optimizer.state[key][..., places]
            assert_near(ours.reshape(theirs.shape), theirs, 1e-5)
        first += len(names)
    assert_near(optimizer.state["model_norms"], golden[f"{run}/state/scalar/model_norms"], 1e-5)


def _parameters() -> dict[str, Any]:
    random = np.random.default_rng(0)
    draw = lambda *shape: mx.array(random.normal(size=shape).astype(np.float32))  # noqa: E731
    return {"layers": [{"weight": draw(3, 5)}, {"weight": draw(4, 4)}], "alpha": draw(1)}


def _gradients(step: int) -> dict[str, Any]:
    random = np.random.default_rng([1, step])
    draw = lambda *shape: mx.array(random.normal(size=shape).astype(np.float32))  # noqa: E731
    return {"layers": [{"weight": draw(3, 5)}, {"weight": draw(4, 4)}], "alpha": draw(1)}


def _run(optimizer: ScaledAdam, parameters: Any, steps: range) -> Any:
    for step in steps:
        parameters = optimizer.apply_gradients(_gradients(step), parameters)
        mx.eval(parameters, optimizer.state)
    return parameters


def _assert_same(ours: Any, theirs: Any) -> None:
    ours, theirs = dict(tree_flatten(ours)), dict(tree_flatten(theirs))
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(np.array(array), np.array(theirs[name]), name)


def test_a_state_restored_from_a_run_continues_bit_for_bit(tmp_path: Path) -> None:
    options = ScaledAdamOptions(clipping_update_period=5)
    optimizer = ScaledAdam(0.01, options)
    halfway = _run(optimizer, _parameters(), range(7))
    part = {"states": [optimizer.state]}
    trees = {"generator": halfway, "discriminator": halfway, "optimizer_g": part}
    write_run_state(tmp_path / "last.safetensors", trees | {"optimizer_d": part}, Place(step=7))
    through = _run(optimizer, halfway, range(7, 14))

    read = read_run_state(tmp_path / "last.safetensors").trees
    restored = ScaledAdam(0.5, options)
    restored.init(_parameters())
    restored.state = read["optimizer_g"]["states"][0]
    _assert_same(_run(restored, read["generator"], range(7, 14)), through)
    _assert_same(restored.state, optimizer.state)


def test_compiled_and_plain_steps_agree() -> None:
    plain, compiled = ScaledAdam(0.01), ScaledAdam(0.01)
    parameters = _parameters()
    expected = _run(plain, parameters, range(6))
    compiled.init(parameters)

    def step(gradients: Any, parameters: Any) -> Any:
        return compiled.apply_gradients(gradients, parameters)

    step = mx.compile(step, inputs=compiled.state, outputs=compiled.state)
    for number in range(6):
        parameters = step(_gradients(number), parameters)
    for (_, ours), (_, theirs) in zip(
        tree_flatten(parameters), tree_flatten(expected), strict=True
    ):
        assert_near(ours, theirs, 1e-6)


def _movement_after_a_spike(*, compat: bool) -> float:
    """How far a tensor moves in five steps, long after one huge gradient."""
    optimizer = ScaledAdam(
        0.01, ScaledAdamOptions(clipping_update_period=5, scalar_lr_scale=0.0), compat=compat
    )
    weight, before = mx.ones((4, 4)), mx.ones((4, 4))
    for step in range(45):
        before = weight if step == 40 else before
        gradient = mx.ones((4, 4)) * (10_000.0 if step == 11 else 1.0)
        weight = optimizer.apply_gradients({"w": gradient}, {"w": weight})["w"]
    return mx.abs(weight - before).mean().item()


def test_one_huge_gradient_does_not_hold_up_the_steps_after_it() -> None:
    steady = 5 * 0.01  # a step of the learning rate, in proportion to an RMS near 1
    assert _movement_after_a_spike(compat=False) > steady / 2
    assert _movement_after_a_spike(compat=True) < steady / 20


@pytest.mark.parametrize("sign", [1, -1])
def test_a_scalar_stays_within_its_limit(sign: int) -> None:
    optimizer = ScaledAdam(1.0)
    scalar = mx.array([9.9 * sign])
    for _ in range(5):
        scalar = optimizer.apply_gradients({"a": mx.array([-1.0 * sign])}, {"a": scalar})["a"]
    assert scalar.item() == pytest.approx(10.0 * sign)


def test_a_tensor_that_is_not_trained_is_left_alone() -> None:
    parameters = {"trained": mx.ones((2, 2)), "frozen": mx.ones((2, 2))}
    optimizer = ScaledAdam(0.01)
    assert set(optimizer.apply_gradients({"trained": mx.ones((2, 2))}, parameters)) == {"trained"}
