"""Loss terms and their gradients against the Python original."""

from __future__ import annotations

import mlx.core as mx

from mlx_vits.training import losses
from tests.support.goldens import assert_close, last, tensors

RTOL = 1e-5
DATA = tensors("losses", "losses.safetensors")
REAL = [DATA[f"in/disc/real{i}"] for i in range(3)]
GENERATED = [DATA[f"in/disc/gen{i}"] for i in range(3)]


def test_discriminator_loss() -> None:
    loss, grads = mx.value_and_grad(losses.discriminator_loss, argnums=(0, 1))(REAL, GENERATED)
    assert_close(loss, DATA["out/disc/loss"][0], rtol=RTOL)
    # One real and one generated branch at a time give the stored parts.
    for i, (real, generated) in enumerate(zip(REAL, GENERATED, strict=True)):
        both = losses.discriminator_loss([real], [generated])
        parts = DATA["out/disc/r_losses"][i] + DATA["out/disc/g_losses"][i]
        assert_close(both, parts, rtol=RTOL)
    for i in range(3):
        assert_close(grads[0][i], DATA[f"out/disc/grad_real{i}"], rtol=RTOL)
        assert_close(grads[1][i], DATA[f"out/disc/grad_gen{i}"], rtol=RTOL)


def test_generator_loss() -> None:
    loss, grads = mx.value_and_grad(losses.generator_loss)(GENERATED)
    assert_close(loss, DATA["out/gen/loss"][0], rtol=RTOL)
    for i in range(3):
        part = losses.generator_loss([GENERATED[i]])
        assert_close(part, DATA["out/gen/losses"][i], rtol=RTOL)
        assert_close(grads[i], DATA[f"out/gen/grad_gen{i}"], rtol=RTOL)


def test_feature_loss() -> None:
    def maps(kind: str) -> list[list[mx.array]]:
        return [[DATA[f"in/fmap/{kind}{i}_{j}"] for j in range(2)] for i in range(2)]

    loss, grads = mx.value_and_grad(losses.feature_loss, argnums=(0, 1))(maps("real"), maps("gen"))
    assert_close(loss, DATA["out/fmap/loss"][0], rtol=RTOL)
    for i in range(2):
        for j in range(2):
            assert_close(grads[1][i][j], DATA[f"out/fmap/grad_gen{i}_{j}"], rtol=RTOL)
            assert not mx.any(grads[0][i][j]).item()


def test_kl_loss() -> None:
    names = ("z_p", "logs_q", "m_p", "logs_p")
    arrays = [last(DATA[f"in/kl/{name}"]) for name in names]
    mask = last(DATA["in/kl/z_mask"])
    loss, grads = mx.value_and_grad(losses.kl_loss, argnums=(0, 1, 2, 3))(*arrays, mask)
    assert_close(loss, DATA["out/kl/loss"][0], rtol=RTOL)
    for name, gradient in zip(names, grads, strict=True):
        assert_close(last(gradient), DATA[f"out/kl/grad_{name}"], rtol=RTOL)


def test_long_sums_keep_their_digits() -> None:
    values = mx.abs(mx.random.normal((1024, 5, 1024), key=mx.random.key(0)))
    exact = float(mx.sum(mx.mean(values, axis=-1)).item())  # short sums
    assert abs(losses.total(values).item() / (exact * 1024) - 1) < 1e-5
