"""Names, axes and strictness of state dicts."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.checkpoints.state_dict import expected_shapes, load_state, state_of
from mlx_vits.config import VERSIONS, Config
from mlx_vits.errors import CheckpointError
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from tests.support.goldens import GOLDENS, SHARED, assert_close, generator, generator_weights
from tests.support.tiny import tiny_config


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_tensor_comes_back_bit_for_bit(dtype: Any) -> None:
    weights = {k: np.array(v, dtype=dtype) for k, v in generator_weights("sovits_v2").items()}
    model = generator("sovits_v2")
    load_state(model, weights, source="file")
    state = state_of(model)
    assert set(state) == set(weights)
    for name, array in weights.items():
        assert np.array_equal(np.array(state[name]).astype(dtype), array), name


@pytest.mark.parametrize("version", VERSIONS)
def test_names_shapes_and_order_are_upstreams(version: str) -> None:
    config = Config.from_dict(_upstream_model(version))
    for model, kind in ((SynthesizerTrn(config), "G"), (MultiPeriodDiscriminator(config), "D")):
        theirs = _upstream_shapes(kind, version)
        assert list(expected_shapes(model).items()) == list(theirs.items())


def _upstream_shapes(kind: str, version: str) -> dict[str, tuple[int, ...]]:
    """v2's are copied into the project, the others are read where ../shared is there."""
    if version == "v2":
        name = {"G": "generator", "D": "discriminator"}[kind]
        found = json.loads((GOLDENS / f"names_{name}_v2.json").read_text())
        return {name: tuple(shape) for name, shape in found.items()}
    if kind == "D":
        version = "v2Pro" if "Pro" in version else "v2"
    path = SHARED / "spec" / "keys" / f"sd{kind}_{version}.json"
    if not path.exists():
        pytest.skip(f"upstream's names of {version} are in ../shared, which is absent")
    return {name: tuple(entry[0]) for name, entry in json.loads(path.read_text()).items()}


def _upstream_model(version: str) -> dict[str, Any]:
    model: dict[str, Any] = {"version": version}
    if "Pro" in version:
        model |= {"gin_channels": 1024, "p_dropout": 0.0}
    if version == "v2ProPlus":
        kernels = [20, 16, 8, 2, 2]
        model |= {"upsample_initial_channel": 768, "upsample_kernel_sizes": kernels}
    return {"model": model}


@pytest.mark.parametrize("scheme", ["plan", "folded"])
def test_other_norm_schemes_keep_the_effective_weights_and_upstreams_names(scheme: Any) -> None:
    weights = generator_weights("sovits_v2")
    model = SynthesizerTrn(generator("sovits_v2").config, scheme)
    load_state(model, weights, source="file")
    normed = {name for name in weights if name.endswith("weight_g")}
    live = {path for path, m in model.named_modules() if "weight_g" in m}
    assert ("dec.conv_pre" in live) == (scheme == "plan")
    assert "dec.resblocks.0.convs1.0" not in live
    assert ("flow.flows.0.enc.cond_layer" in live) == (scheme == "plan")
    state = state_of(model)
    assert list(state) == list(state_of(generator("sovits_v2")))
    assert {name for name in state if name.endswith("weight_g")} == normed
    for name in normed:
        g, v = np.array(state[name]), np.array(state[name.replace("_g", "_v")])
        theirs = weights[name.replace("_g", "_v")]
        axes = tuple(range(1, v.ndim))
        ours = g * v / np.sqrt(np.sum(v**2, axis=axes, keepdims=True))
        length = np.sqrt(np.sum(theirs**2, axis=axes, keepdims=True))
        assert_close(ours, weights[name] * theirs / length, rtol=1e-5, atol=1e-7)


def _tiny() -> SynthesizerTrn:
    return SynthesizerTrn(tiny_config())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("dec.ups.1.weight_g"), r"lacks dec\.ups\.1\.weight_g"),
        (lambda s: s.update(extra=mx.zeros(1)), "has not: extra"),
        (lambda s: s.update({"enc_p.proj.bias": mx.zeros(3)}), r"enc_p\.proj\.bias has shape"),
    ],
)
def test_loading_is_strict_and_names_the_tensor(change: Any, words: str) -> None:
    state = state_of(_tiny())
    change(state)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_state(_tiny(), state, source="some.pth")
    assert str(caught.value).startswith("some.pth: ")


def test_an_exported_voice_may_lack_its_posterior_encoder_as_a_whole_only() -> None:
    model = _tiny()
    state = {k: v for k, v in state_of(model).items() if not k.startswith("enc_q.")}
    assert load_state(_tiny(), state, source="x", may_lack=("enc_q.",)) == ["enc_q."]
    with pytest.raises(CheckpointError, match="lacks enc_q"):
        load_state(_tiny(), state, source="x")
    state["enc_q.pre.bias"] = state_of(model)["enc_q.pre.bias"]
    with pytest.raises(CheckpointError, match=r"lacks enc_q\.pre\.weight"):
        load_state(_tiny(), state, source="x", may_lack=("enc_q.",))


def test_a_failed_load_changes_nothing() -> None:
    model = _tiny()
    before = state_of(model)
    broken = {k: mx.ones_like(v) for k, v in before.items()} | {"enc_p.proj.bias": mx.zeros(3)}
    with pytest.raises(CheckpointError):
        load_state(model, broken, source="x")
    after = state_of(model)
    assert all(mx.array_equal(after[name], array) for name, array in before.items())
