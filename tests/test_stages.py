"""Both stages of a fine-tune: SoVITS, then the GPT."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_vits
from mlx_vits import finetune
from mlx_vits.checkpoints.base import choose_base
from mlx_vits.checkpoints.gpt_file import load_gpt_model, read_gpt
from mlx_vits.checkpoints.run import T2S_PARTS, read_run_state
from mlx_vits.checkpoints.torch_archive import read_torch_archive
from mlx_vits.errors import UserError
from mlx_vits.finetune import FinetuneOptions, gpt_stage
from mlx_vits.finetune.gpt_judging import GPTJudge
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.codes import read_code_lines
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.training.log import GPT_TAGS
from mlx_vits.training.t2s_batches import T2SVoice
from mlx_vits.training.t2s_trainer import T2STrainingConfig
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.runs import names
from tests.support.tiny import SEGMENT, Silent, make_base, make_voice, tiny_config
from tests.support.tiny_gpt import add_gpt

FILES = (
    "checkpoints/last.safetensors",
    "checkpoints/gpt_last.safetensors",
    "gpt/weights.safetensors",
    "me.safetensors",
    "losses.jsonl",
    "scores.jsonl",
    "gpt_losses.jsonl",
    "gpt_scores.jsonl",
)
EPOCHS = 3


class Screen(Silent):
    """Keeps what is said, and may do something after every step of a stage."""

    def __init__(self, act: Callable[[str, int], None] | None = None):
        self.said: list[str] = []
        self.stages: list[tuple[str, int, int]] = []
        self._act = act

    def say(self, text: str) -> None:
        self.said.append(text)

    warn = say

    def stage(self, name: str, number: int, count: int) -> None:
        self.stages.append((name, number, count))

    def step(self, record: Any, total: int) -> None:
        if self._act:
            self._act(self.stages[-1][0], record.place.step)


class Scene:
    """A base with a GPT, and a prepared voice of five clips, one of them held out."""

    def __init__(self, root: Path):
        self.root = root
        make_base(root / "base")
        add_gpt(root / "base")
        self.base = choose_base(str(root / "base"))
        self.prepared = prepare_voice(
            make_voice(root / "clips", clips=5, shortest=2.0),
            root / "prepared",
            self.base,
            tiny_config(),
            PrepareOptions(held_out=1),
        )

    def options(self, folder: Path, **more: Any) -> FinetuneOptions:
        training = VITSTrainingConfig(steps=1, batch_size=1, segment_size=SEGMENT)
        gpt = T2STrainingConfig(epochs=EPOCHS, save_every=1)
        options = FinetuneOptions("me", self.prepared, self.base, folder, training)
        return replace(options, **({"gpt_training": gpt} | more))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: Any) -> Scene:
    return Scene(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def screen() -> Screen:
    return Screen()


@pytest.fixture(scope="module")
def run(scene: Scene, screen: Screen) -> Path:
    """A run of both stages, which nobody asked for."""
    finetune.start(scene.options(scene.root / "run"), screen)
    return scene.root / "run"


def verdict_of(run: Path) -> Any:
    return json.loads((run / "verdict.json").read_text())


def lines_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_are_trained_where_both_can_be(run: Path, screen: Screen) -> None:
    assert any("Both stages are trained" in words for words in screen.said)
    assert screen.stages == [("sovits", 1, 2), ("gpt", 2, 2)]
    assert json.loads((run / "run.json").read_text())["options"]["stage"] == "both"
    verdict, losses = verdict_of(run), lines_of(run / "gpt_losses.jsonl")
    assert verdict["steps"] == 1
    assert verdict["gpt"]["steps"] == len(losses) == losses[-1]["step"]
    assert verdict["gpt"]["epochs"] == EPOCHS
    assert losses[0]["loss_reg"] == 0 < losses[-1]["loss_reg"]
    assert [score["epoch"] for score in lines_of(run / "gpt_scores.jsonl")] == [0, 1, 2, 3]
    page = (run / "report.html").read_text()
    assert 'id="gpt"' in page
    assert 'id="curves"' in page


def test_codes_are_made_with_the_base_once_for_all(run: Path, scene: Scene) -> None:
    table = scene.prepared / layout.CODES_FILE
    assert len(read_code_lines(table)) == 4
    assert len(read_code_lines(scene.prepared / "held_out" / layout.CODES_FILE)) == 1
    before = table.stat().st_mtime_ns
    finetune.resume(run, Silent())
    assert table.stat().st_mtime_ns == before


def test_the_best_epoch_speaks_and_the_last_is_exported_as_well(run: Path, scene: Scene) -> None:
    scores = lines_of(run / "gpt_scores.jsonl")
    best = min(scores, key=lambda score: score["ce"])
    verdict = verdict_of(run)["gpt"]
    assert verdict["speaks"] == best["epoch"] > 0
    assert verdict["final_score"]["ce"] == pytest.approx(best["ce"], rel=1e-6)
    assert verdict["last_score"]["ce"] == pytest.approx(scores[-1]["ce"], rel=1e-6)
    spoken = read_gpt(run / "gpt")
    assert spoken.info == f"GPT-e{best['epoch']:.0f}"
    assert mlx_vits.load(run).speaker.gpt.info == spoken.info
    judge = GPTJudge(T2SVoice(scene.prepared, "v2", eos=spoken.config.EOS), "v2")
    assert judge.are_held_out
    assert judge.score(load_gpt_model(spoken)).ce == pytest.approx(best["ce"], rel=1e-6)
    exported = {path.name for path in run.glob("*.ckpt")}
    assert exported == {f"me-e{best['epoch']:.0f}.ckpt", f"me-e{EPOCHS}.ckpt"}


def test_the_export_is_upstreams_and_the_same_gpt(run: Path) -> None:
    state = read_run_state(run / "checkpoints" / "gpt_last.safetensors", parts=T2S_PARTS)
    content = read_torch_archive(run / f"me-e{EPOCHS}.ckpt")
    assert set(content) == {"weight", "config", "info"}
    assert content["info"] == f"GPT-e{EPOCHS}"
    assert content["config"]["model"]["n_layer"] == 2
    weight = content["weight"]["model.ar_predict_layer.weight"]
    assert weight.dtype == np.float16
    ours = np.array(state.trees["t2s"]["ar_predict_layer"]["weight"])
    np.testing.assert_array_equal(weight, ours.astype(np.float16))


@pytest.mark.parametrize(("stage", "step"), [("sovits", 1), ("gpt", 2), ("gpt", 5)])
def test_a_run_stopped_in_either_stage_goes_on_as_if_it_had_not(
    run: Path, scene: Scene, tmp_path: Path, stage: str, step: int
) -> None:
    def stop(name: str, at: int) -> None:
        if (name, at) == (stage, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="--resume"):
        finetune.start(scene.options(tmp_path / "run"), Screen(stop))
    finetune.resume(tmp_path / "run", Silent())
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name
    assert names(tmp_path / "run") == names(run)


def test_only_the_gpt_with_the_bases_voice_and_sovits_later(scene: Scene, tmp_path: Path) -> None:
    screen, folder = Screen(), tmp_path / "run"
    finetune.start(scene.options(folder, stage="gpt"), screen)
    assert screen.stages == [("gpt", 1, 1)]
    verdict = verdict_of(folder)
    assert "final_score" not in verdict
    assert verdict["better_than_base"] is (verdict["gpt"]["speaks"] > 0)
    assert not (folder / "losses.jsonl").exists()
    page = (folder / "report.html").read_text()
    assert 'id="gpt"' in page
    assert 'id="curves"' not in page
    voice = mlx_vits.load(folder)
    base = mlx_vits.load(scene.root / "base")
    assert mx.array_equal(voice.model.dec.conv_pre.weight, base.model.dec.conv_pre.weight)
    assert verdict["new_sentence"] is not None

    kept = (folder / "checkpoints" / "gpt_last.safetensors").read_bytes()
    finetune.resume(folder, screen, stage="both")
    assert screen.stages[1:] == [("sovits", 1, 2), ("gpt", 2, 2)]
    assert {"final_score", "gpt"} <= set(verdict_of(folder))
    assert (folder / "checkpoints" / "gpt_last.safetensors").read_bytes() == kept


def test_a_run_gets_its_gpt_later(run: Path, scene: Scene, tmp_path: Path) -> None:
    folder, screen = tmp_path / "run", Screen()
    finetune.start(scene.options(folder, stage="sovits"), screen)
    assert screen.stages == [("sovits", 1, 1)]
    assert "gpt" not in verdict_of(folder)
    with pytest.raises(UserError, match=r"--stage gpt: .* --stage both adds this one"):
        finetune.resume(folder, screen, stage="gpt")
    finetune.resume(folder, screen, stage="both")
    for name in FILES:
        assert (folder / name).read_bytes() == (run / name).read_bytes(), name


def test_without_held_out_clips_the_last_epoch_speaks(scene: Scene, tmp_path: Path) -> None:
    options = scene.options(tmp_path / "run", data=scene.root / "clips", held_out=0, stage="gpt")
    finetune.start(options, Silent())
    verdict = verdict_of(tmp_path / "run")
    assert not verdict["gpt"]["clips_are_held_out"]
    assert verdict["gpt"]["speaks"] == EPOCHS
    assert "as none was held out" in verdict["words"][0]
    assert read_gpt(tmp_path / "run" / "gpt").info == f"GPT-e{EPOCHS}"


def test_where_no_epoch_is_better_the_bases_gpt_speaks_on(
    scene: Scene, tmp_path: Path, monkeypatch: Any
) -> None:
    score = GPTJudge.score
    found: list[float] = []

    def worse(judge: GPTJudge, model: Any) -> Any:
        found.append(1.0 + len(found))
        return score(judge, model)._replace(ce=found[-1])

    monkeypatch.setattr(GPTJudge, "score", worse)
    finetune.start(scene.options(tmp_path / "run"), Silent())
    verdict = verdict_of(tmp_path / "run")
    assert verdict["gpt"]["speaks"] == 0
    assert not verdict["findings"]["codes foretold"]["passed"]
    assert "the base's GPT goes on speaking" in verdict["words"][-1]
    assert not (tmp_path / "run" / "gpt").exists()
    assert mlx_vits.load(tmp_path / "run").speaker.gpt.info == "tiny"


def test_where_the_gpt_cannot_be_trained_it_is_said(scene: Scene, tmp_path: Path) -> None:
    without = replace(scene.base, gpt=None)
    screen = Screen()
    finetune.start(scene.options(tmp_path / "run", base=without), screen)
    assert screen.stages == [("sovits", 1, 1)]
    (words,) = [words for words in screen.said if "Only SoVITS is trained" in words]
    assert "mlx-vits download v2" in words
    with pytest.raises(UserError, match="has no GPT to train"):
        finetune.start(scene.options(tmp_path / "other", base=without, stage="both"), screen)
    assert not (tmp_path / "other").exists()


def test_a_gpt_that_has_not_heard_the_language_is_trained_if_asked(
    scene: Scene, tmp_path: Path
) -> None:
    make_base(tmp_path / "base")
    add_gpt(tmp_path / "base", languages=["ja"])
    base, screen = choose_base(str(tmp_path / "base")), Screen()
    finetune.start(scene.options(tmp_path / "first", base=base), screen)
    assert any("has heard ja alone, and the voice speaks en" in words for words in screen.said)
    assert screen.stages == [("sovits", 1, 1)]
    finetune.start(scene.options(tmp_path / "second", base=base, stage="gpt"), screen)
    assert read_gpt(tmp_path / "second" / "gpt").config.extra["languages"] == ["en", "ja"]


def test_what_changed_since_the_start_is_named(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    data = scene.root / "clips"
    finetune.start(scene.options(folder, data=data, stage="gpt"), Silent())
    codes = folder / "prepared" / layout.CODES_FILE
    whole = codes.read_text()
    codes.write_text(whole.replace("\t", "\t1 ", 2))
    (folder / "prepared" / "6-name2semantic.json").unlink()
    (folder / "prepared" / "mlx_vits.json").rename(tmp_path / "kept.json")
    with pytest.raises(UserError, match="is not the data that the run"):
        finetune.resume(folder, Silent())
    (tmp_path / "kept.json").rename(folder / "prepared" / "mlx_vits.json")
    finetune.resume(folder, Silent())  # codes are made again, as they were
    assert codes.read_text() == whole


def test_training_that_stops_itself_names_the_option(scene: Scene, tmp_path: Path) -> None:
    training = T2STrainingConfig(lr=1e30)
    options = scene.options(tmp_path / "run", stage="gpt", gpt_training=training)
    with pytest.raises(UserError, match=r"Training stopped itself: .*; try a lower --gpt-lr"):
        finetune.start(options, Silent())


def test_a_shortage_of_memory_is_said(scene: Scene, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpt_stage, "usable_memory", lambda: 100_000)
    screen = Screen()
    finetune.start(scene.options(tmp_path / "run", stage="gpt"), screen)
    (words,) = [words for words in screen.said if "Memory may run out" in words]
    assert "needs about" in words


def test_sovits_is_gone_from_memory_when_the_gpt_begins(scene: Scene, tmp_path: Path) -> None:
    counts: list[int] = []

    class Counting(Screen):
        def stage(self, name: str, number: int, count: int) -> None:
            super().stage(name, number, count)
            gc.collect()
            counts.append(sum(type(o) is SynthesizerTrn for o in gc.get_objects()))

    finetune.start(scene.options(tmp_path / "run", stage="both"), Counting())
    assert counts[1] == counts[0] - 1


def test_a_gpt_of_upstreams_form_is_trained_on(run: Path, scene: Scene, tmp_path: Path) -> None:
    given = run / f"me-e{EPOCHS}.ckpt"
    base = choose_base(str(scene.root / "base"), pretrained_gpt=given)
    finetune.start(scene.options(tmp_path / "run", base=base, stage="gpt"), Silent())
    verdict = verdict_of(tmp_path / "run")["gpt"]
    assert verdict["base"] == given.name
    # The base's score is that of the run's last epoch, whose weights were rounded to fp16.
    last = lines_of(run / "gpt_scores.jsonl")[-1]["ce"]
    assert verdict["base_score"]["ce"] == pytest.approx(last, rel=1e-3)
    given.rename(tmp_path / "moved.ckpt")
    with pytest.raises(UserError, match=given.name):
        finetune.resume(tmp_path / "run", Silent())
    (tmp_path / "moved.ckpt").rename(given)


def test_tensorboard_has_a_folder_for_the_gpt(scene: Scene, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    options = scene.options(tmp_path / "run", stage="gpt", tensorboard=True)
    finetune.start(options, Silent())
    (events,) = (tmp_path / "run" / "tensorboard" / "gpt").iterdir()
    content = events.read_bytes()
    assert all(tag.encode() in content for tag in GPT_TAGS.values())
