"""The full-size discriminators against the Python original."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.config import Config
from mlx_vits.models.vits import MultiPeriodDiscriminator
from tests.support.goldens import assert_near, discriminator, last, tensors, values

SHARE = 1e-5  # of the maximum


@pytest.mark.parametrize("folder", ["mpd_v2", "mpd_v2Pro"])
def test_scores_and_feature_maps(folder: str) -> None:
    meta, data = values(folder, "mpd.json"), tensors(folder, "mpd.safetensors")
    model = discriminator(folder, meta["seed"], meta["rules"])
    for kind, wav in (("real", data["in/y"]), ("gen", data["in/y_hat"])):
        for index, judgement in enumerate(model(last(wav))):
            assert_near(judgement.score, data[f"logits_{kind}/{index}"], SHARE)
            period = getattr(model.discriminators[index], "period", None)
            for layer, ours in enumerate(judgement.features):
                ordered = _upstream_order(ours, wav.shape[0], period)
                flat = ordered.flatten()
                name = f"fmap_{kind}/{index}_{layer}"
                _assert_statistics(ordered, meta["fmap_stats"][name])
                theirs = data[f"{name}/value"]
                atol = SHARE * mx.max(mx.abs(flat)).item()
                assert mx.max(mx.abs(flat[data[f"{name}/index"]] - theirs)).item() <= atol, name


def _assert_statistics(features: mx.array, theirs: dict[str, Any]) -> None:
    array = np.array(features, dtype=np.float64)
    assert list(array.shape) == theirs["shape"]
    largest = theirs["abs_mean"]
    assert np.mean(array) == pytest.approx(theirs["mean"], abs=1e-4 * largest)
    assert np.mean(np.abs(array)) == pytest.approx(largest, rel=1e-4)
    assert np.linalg.norm(array) == pytest.approx(theirs["l2"], rel=1e-4)


def _upstream_order(features: mx.array, batch: int, period: int | None) -> mx.array:
    """[B, C, T], or [B, C, H, P] of a period's columns."""
    if period is None:
        return last(features)
    *_, height, channels = features.shape  # planar on CUDA
    return features.reshape(batch, period, height, channels).transpose(0, 3, 2, 1)


def test_width_scales_channels_and_groups() -> None:
    full = expected_shapes(MultiPeriodDiscriminator())
    config = Config.from_dict({"reduced_dims": {"disc_width": 0.25}})
    reduced = MultiPeriodDiscriminator(config)
    shapes = expected_shapes(reduced)
    assert list(shapes) == list(full)
    assert full["discriminators.0.convs.3.weight_v"] == (1024, 4, 41)
    assert shapes["discriminators.0.convs.3.weight_v"] == (256, 4, 41)
    assert shapes["discriminators.2.convs.3.weight_v"] == (256, 128, 5, 1)
    scores: list[Any] = [judgement.score for judgement in reduced(mx.ones((2, 6400, 1)))]
    assert [score.shape[0] for score in scores] == [2] * 6
