"""A voice between the pretrained weights and the trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from safetensors.numpy import load_file

from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.checkpoints.run import CHECKPOINTS, LAST, read_run_state
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.training.blending import Blend
from mlx_vits.training.vits_trainer import VITSTrainingConfig, freeze_for
from tests.support.tiny import SEGMENT, Silent, make_base, make_voice, tiny_config

VOICE = "clips.safetensors"


def _generator(train: Any = "all") -> SynthesizerTrn:
    mx.random.seed(0)
    model = SynthesizerTrn(tiny_config())
    freeze_for(model, train)
    return model


def _leaves(model: SynthesizerTrn) -> dict[str, np.ndarray]:
    leaves: Any = tree_flatten(model.parameters())
    return {path: np.array(array) for path, array in leaves}


def _train(model: SynthesizerTrn) -> None:
    """As a step does: the arrays of what is trained are other ones after it."""
    model.update(tree_map(lambda array: 1.5 * array + 0.25, model.trainable_parameters()))


@pytest.mark.parametrize("train", ["all", "decoder"])
@pytest.mark.parametrize(("share", "prior"), [(0.25, None), (1.0, None), (0.5, 0.1), (1, 0)])
def test_what_is_trained_goes_its_share_of_the_way(
    train: Any, share: float, prior: float | None
) -> None:
    model = _generator(train)
    before = _leaves(model)
    blend = Blend(model, share, prior)
    for _ in range(2):  # each time from the pretrained weights, not from the last blend
        _train(model)
        trained, blended = _leaves(model), _leaves(blend.model())
        for path, array in blended.items():
            is_prior = prior is not None and path.split(".")[0] in ("enc_p", "enc_q", "flow")
            way = prior if is_prior else share
            wanted = before[path] + way * (trained[path] - before[path])
            assert np.allclose(array, wanted, rtol=1e-6, atol=1e-6), path
    frozen = {path for path in before if np.array_equal(before[path], trained[path])}
    assert any(path.startswith("quantizer") for path in frozen)
    assert all(np.array_equal(blended[path], before[path]) for path in frozen)


def test_the_whole_way_is_the_generator_itself() -> None:
    model = _generator()
    assert Blend(model, 1).model() is model
    assert Blend(model, 1).describe() == ""


def test_it_says_where_the_voice_lies() -> None:
    words = "The voice lies at 0.5 of the way from the base to what is trained{}; --blend chooses."
    assert Blend(_generator(), 0.5).describe() == words.format("")
    assert Blend(_generator(), 0.5, 0.1).describe() == words.format(" (0.1 for encoders and flow)")


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share(share: float) -> None:
    with pytest.raises(ValueError, match="blend is"):
        VITSTrainingConfig(blend=share)
    with pytest.raises(ValueError, match="blend_prior is"):
        VITSTrainingConfig(blend_prior=share)


def test_a_run_saves_and_scores_the_blend_and_trains_on_without_it(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    data, base = make_voice(tmp_path / "clips"), choose_base(str(tmp_path / "base"))
    verdicts = {}
    for blend in (1.0, 0.5):
        training = VITSTrainingConfig(steps=3, batch_size=2, segment_size=SEGMENT, blend=blend)
        options = finetune.FinetuneOptions("clips", data, base, tmp_path / f"{blend}", training)
        verdicts[blend] = finetune.start(options, Silent())
    whole, half = (load_file(tmp_path / f"{blend}" / VOICE) for blend in (1.0, 0.5))
    origin = load_file(tmp_path / "base" / "generator.safetensors")
    moved = 0
    for name, array in half.items():
        assert np.allclose(array, (origin[name] + whole[name]) / 2, rtol=1e-5, atol=1e-7), name
        moved += not np.array_equal(array, origin[name])
    assert moved > 100
    trees = [read_run_state(tmp_path / f"{b}" / CHECKPOINTS / LAST).trees for b in (1.0, 0.5)]
    same = tree_map(lambda a, b: mx.array_equal(a, b).item(), *(t["generator"] for t in trees))
    assert all(flag for _, flag in tree_flatten(same))
    drift = [np.mean(list(verdicts[blend]["drift"].values())) for blend in (1.0, 0.5)]
    assert drift[1] == pytest.approx(drift[0] / 2, rel=0.05)
    assert verdicts[0.5]["final_score"] != verdicts[1.0]["final_score"]

    again = finetune.resume(tmp_path / "0.5", Silent(), blend=1.0)
    assert again["final_score"] == verdicts[1.0]["final_score"]
    voice = load_file(tmp_path / "0.5" / VOICE)
    assert all(np.array_equal(voice[name], whole[name]) for name in whole)


def test_a_voice_of_upstreams_form_holds_the_blend(tmp_path: Path) -> None:
    model = _generator()
    blend = Blend(model, 0.5)
    _train(model)
    assert set(state_of(blend.model())) == set(state_of(model))
