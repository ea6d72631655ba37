"""Where the goldens are, and how they are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.checkpoints.state_dict import load_state
from mlx_vits.config import Config
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from tests.support.recipe import make_weights

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"
SHARED = ROOT.parent / "shared"


def golden(*parts: str) -> Path:
    """A golden's path; one that only `../shared` has skips the test where that is absent."""
    own = GOLDENS.joinpath(*parts)
    if own.exists():
        return own
    shared = SHARED.joinpath("goldens", *parts)
    if not shared.exists():
        pytest.skip(f"{'/'.join(parts)} is not copied into the project and ../shared is absent")
    return shared


def tensors(*parts: str) -> dict[str, mx.array]:
    loaded = mx.load(str(golden(*parts)))
    assert isinstance(loaded, dict)
    return loaded


def values(*parts: str) -> Any:
    return json.loads(golden(*parts).read_text())


def generator_weights(folder: str) -> dict[str, Any]:
    """A reduced or full-size generator's state dict, made by recipe where its shapes are listed."""
    listed = GOLDENS / folder / "state_dict.json"
    if not listed.exists() and not folder.startswith("full"):
        return tensors(folder, "weights.safetensors")
    meta = values(folder, "meta.json")
    return make_weights(golden(folder, "state_dict.json"), meta["seed"], meta["rules"])


def generator(folder: str, scheme: Any = "upstream") -> SynthesizerTrn:
    if folder.startswith("full"):
        meta = values(folder, "meta.json")
        config = Config.from_dict(meta["config"] | {"version": meta["version"]})
    else:
        config = Config.read(golden(folder, "config.json"))
    model = SynthesizerTrn(config, scheme)
    load_state(model, generator_weights(folder), source=folder)
    return model


def discriminator(
    folder: str, seed: int, rules: list[Any], *, own_seed: bool = True
) -> MultiPeriodDiscriminator:
    config = Config.from_dict({"model": {"version": folder.removeprefix("mpd_")}})
    model = MultiPeriodDiscriminator(config)
    path = golden(folder, "state_dict.json")
    weights = make_weights(path, seed, rules, own_seed=own_seed)
    load_state(model, weights, source=folder)
    return model


def last(array: mx.array) -> mx.array:
    """[B, C, T] to (B, T, C)."""
    return array.swapaxes(1, 2)


def assert_close(ours: Any, theirs: Any, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=atol, rtol=rtol)


def assert_near(ours: Any, theirs: Any, share: float = 1e-4) -> None:
    """Within a share of the reference's largest magnitude."""
    theirs = np.array(theirs)
    assert_close(ours, theirs, atol=share * float(np.abs(theirs).max()))


def relative_l2(ours: Any, theirs: Any) -> float:
    ours, theirs = (np.array(a, dtype=np.float64).ravel() for a in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
