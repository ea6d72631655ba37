"""A training step with `accel/cuda`, and its parts, on `support/cuda.py` without a GPU."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_vits import accel
from mlx_vits.accel.compilation import stop_fusing
from mlx_vits.accel.cuda import blocks, training
from mlx_vits.models.discriminator import DiscriminatorP, DiscriminatorS
from mlx_vits.tools.bench import work
from mlx_vits.training import losses
from mlx_vits.training.optimizers import global_norm
from mlx_vits.training.step import GANStep, draw_step, judged
from tests.support.cuda import HAS_CUDA, On, differs, normal, stand_in_kernels
from tests.support.steps import make_step
from tests.support.tiny import tiny_config

stand_ins = pytest.fixture(stand_in_kernels)


def test_the_feature_loss_and_the_norm(stand_ins: On) -> None:
    shapes = (2, 5, 3), (2, 4), (3, 7000), (1, 2, 2)
    real = [normal(*shape, seed=n) for n, shape in enumerate(shapes)]
    fake = [normal(*shape, seed=n + 4) for n, shape in enumerate(shapes)]

    def graded(loss: Any) -> list[mx.array]:
        found = mx.vjp(
            lambda *maps: loss([real[:2], real[2:]], [maps[:2], maps[2:]]), fake, [mx.array(1.0)]
        )
        return [array for arrays in found for array in arrays]

    with stand_ins():
        ours = graded(training.feature_loss)
        norm = training.global_norm({"a": real[0], "b": [real[2]]})
        assert training.global_norm({}).item() == 0
    for a, b in zip(ours, graded(losses.feature_loss), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)
    assert norm.item() == pytest.approx(global_norm([real[0], real[2]]).item(), rel=1e-5)


def test_the_losses_of_scores(stand_ins: On) -> None:
    scores = [normal(2, 5 + n, seed=n) for n in range(4)]

    def found(module: Any) -> list[mx.array]:
        both = mx.vjp(
            lambda *all_: [
                module.discriminator_loss(all_[:2], all_[2:]),
                module.generator_loss(all_[3:]),
            ],
            scores,
            [mx.array(0.5), mx.array(2.0)],
        )
        return [array for arrays in both for array in arrays]

    with stand_ins():
        ours = found(training)
    for a, b in zip(ours, found(losses), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_the_pull(stand_ins: On) -> None:
    """Away from its start: loss, norm, and the sum of all gradients."""
    with accel.use("off"):
        step = make_step(tiny_config(), pull=50.0)
        parameters = step.generator.trainable_parameters()
        grads = tree_map(lambda x: normal(*x.shape, seed=x.size), parameters)
        step.generator.update(tree_map(lambda x: x + 0.1 * normal(*x.shape), parameters))
        assert step.penalty is not None
        plain = step.penalized(step.penalty, grads)
    with stand_ins():
        accel.optimize(step)
        ours = step.penalized(step.penalty, grads)
    assert ours.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert ours.norm.item() == pytest.approx(plain.norm.item(), rel=1e-5)
    found: dict[str, mx.array] = dict(tree_flatten(ours.grads))
    assert plain.norm.item() > 1
    for name, value in tree_flatten(plain.grads):
        np.testing.assert_allclose(found.pop(name), value, rtol=1e-4, atol=1e-5)
    assert not found


@pytest.mark.parametrize("kind", ["S", "P"])
def test_judging_both(stand_ins: On, kind: str) -> None:
    """Scores, feature maps and the gradient in generated audio."""
    mx.random.seed(0)
    net: Any = DiscriminatorS(1 / 32) if kind == "S" else DiscriminatorP(3, 1 / 32)
    real, fake = normal(2, 400, 1), normal(2, 400, 1, seed=1)

    def said(judge: Any) -> list[mx.array]:
        def loss(fake: mx.array) -> Any:
            parts = [
                y for of_one in judge(net, real, fake) for y in (of_one.score, *of_one.features)
            ]
            return sum(mx.sum(y * normal(*y.shape, seed=n)) for n, y in enumerate(parts)), parts

        (_, parts), grad = mx.value_and_grad(loss)(fake)
        return [*parts, grad]

    with accel.use("off" if not HAS_CUDA else "cuda"):
        plain = said(judged)
    with stand_ins():
        accel.apply(net)
        ours = said(blocks.judged)
    assert len(ours) == len(plain)
    tolerance = 5e-3 if HAS_CUDA else 1e-5
    for a, b in zip(ours, plain, strict=True):
        assert not differs(a, b, tolerance, tolerance, 1e-6)


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> work.Work:
    monkeypatch.setattr(work.Work, "config", property(lambda self: tiny_config(self.version)))
    return work.Work("v2", 2, 1.0)


def _stepped(step: GANStep, size: work.Work) -> dict[str, mx.array]:
    batch = work.make_batch(size)
    result = step.run(batch, draw_step(mx.random.key(0), batch, size.config))
    leaves: Any = tree_flatten(
        {
            "losses": result.losses,
            "generator": result.grads_g,
            "discriminator": result.grads_d,
            "moments": [optimizer.state for optimizer in step.optimizers],
        }
    )
    mx.eval([array for _, array in leaves])
    return dict(leaves)


def test_a_whole_step(stand_ins: On, size: work.Work) -> None:
    """Each array is compared by its norm, moments among them, by the names that files have.

    How far the plain step is from itself under six BLAS kernels (MKL with AVX-512 and with SSE2,
    OpenBLAS for Prescott, Haswell and Skylake-X, the reference BLAS) sets the scale: up to 7e-4 for
    a gradient of a few elements, each of them a sum over every sample in which most cancels, and up
    to 8e-5 for the rest. Gradients that are 0 in exact arithmetic are left with up to 2e-8, 6e-11
    of the norm of all of them.
    """
    with accel.use("cpu") if not HAS_CUDA else nullcontext():
        plain = _stepped(_plain_step(size), size)
    with stand_ins():
        ours = _stepped(work.make_step(size), size)
    assert list(ours) == list(plain)
    few, rest = (2e-2, 2e-2) if HAS_CUDA else (2e-3, 3e-4)  # products may be TF32 there
    nothing = 3e-10 * plain["losses.grad_norm_g"].item()
    wrong = [
        name
        for name, value in plain.items()
        if differs(ours[name].astype(mx.float32), value.astype(mx.float32), rest, few, nothing)
    ]
    assert not wrong


def _plain_step(size: work.Work) -> GANStep:
    """Without equivalents of blocks; the convolutions are those of the backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accel, "apply", lambda model, **_: model)
        patch.setattr(accel, "optimize", lambda step: None)
        return work.make_step(size)


def test_a_compiled_step(stand_ins: On, size: work.Work) -> None:
    """Recorded and played back, over two steps: to rounding what is computed at once."""
    found = []
    if not stop_fusing():
        pytest.skip("this MLX fuses, which takes minutes")
    with stand_ins(), ExitStack() as after:
        if not HAS_CUDA:  # where steps are compiled so anyway
            after.callback(stop_fusing.cache_clear)
            after.callback(mx.enable_compile)
        for compiled in (False, True):
            step, batch = work.make_step(size, compiled=compiled), work.make_batch(size)
            for seed in range(2):
                values = step(batch, mx.random.key(seed))
                mx.eval(values, step.state)
            found.append({name: value.item() for name, value in values.items()})
    assert found[1] == pytest.approx(found[0], rel=1e-3)
