"""The loop of the GPT stage: what an epoch holds, and that resuming changes nothing."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits.checkpoints.run import T2S_PARTS, read_run_state, write_run_state
from mlx_vits.errors import CheckpointError, DataError, TrainingStopped
from mlx_vits.preprocessing.codes import CodeLine, write_code_lines
from mlx_vits.preprocessing.prepared import TextLine, write_text_lines
from mlx_vits.training import t2s_trainer
from mlx_vits.training.regularization import take_anchor
from mlx_vits.training.scaled_adam import ScaledAdam
from mlx_vits.training.t2s_batches import T2SVoice as PreparedT2S
from mlx_vits.training.t2s_footprint import T2SClips, count_weights, estimate_t2s_peak
from mlx_vits.training.t2s_step import T2SStep, score_codes, t2s_terms
from mlx_vits.training.t2s_trainer import T2STrainer, T2STrainingConfig
from tests.support.t2s_voice import BERT, Clip, RandomVoice, batch_of, random_clips
from tests.support.tiny_gpt import EOS, tiny_gpt

CLIPS = 14
QUICK = T2STrainingConfig(steps=4, batch_size=2)


def make_trainer(config: T2STrainingConfig = QUICK, clips: int = CLIPS) -> T2STrainer:
    model = tiny_gpt()
    voice = RandomVoice(clips, dpo=config.dpo, compat=config.compat)
    return T2STrainer(model, voice, config, take_anchor(model))


def run(trainer: T2STrainer, steps: int | None = None) -> list[dict[str, float]]:
    records = []
    for record in trainer.steps():
        records.append(record.values)
        if len(records) == steps:
            break
    return records


def arrays_of(trainer: T2STrainer) -> dict[str, np.ndarray]:
    leaves: Any = tree_flatten(trainer.trees())
    return {name: np.array(array) for name, array in leaves}


@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        (3, {"dpo": True}),
        (2, {"compat": True}),  # in an epoch's middle, with batches left over from it
        (1, {"optimizer": "adamw", "compiled": True, "precision": "bf16"}),
        (1, {"checkpoint_activations": "on"}),
    ],
    ids=str,
)
def test_a_resumed_run_equals_the_run_that_never_stopped(
    stop: int, changes: Any, tmp_path: Path
) -> None:
    config = replace(QUICK, **changes)
    whole = make_trainer(config)
    records = run(whole)
    first = make_trainer(config)
    before = run(first, stop)
    write_run_state(tmp_path / "state.safetensors", first.trees(), first.place)
    second = make_trainer(config)
    second.restore(read_run_state(tmp_path / "state.safetensors", parts=T2S_PARTS), "state")
    assert before + run(second) == records
    assert second.place == whole.place
    ours, theirs = arrays_of(second), arrays_of(whole)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert np.array_equal(ours[name], array), name


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    path, trainer = tmp_path / "state.safetensors", make_trainer()
    write_run_state(path, trainer.trees(), trainer.place)
    with pytest.raises(CheckpointError, match="is not the state of a run"):
        read_run_state(path)  # of the SoVITS stage
    state = read_run_state(path, parts=T2S_PARTS)
    other = make_trainer(replace(QUICK, optimizer="adamw"))
    before = arrays_of(other)
    with pytest.raises(CheckpointError, match=r"^state: belongs to a run with other settings"):
        other.restore(state, "state")
    assert all(np.array_equal(before[name], array) for name, array in arrays_of(other).items())


def test_an_epoch_learns_all_its_clips_and_no_others() -> None:
    """7 micro-batches an epoch: a step of 4 and one of 3, where upstream leaves 2 to the next."""
    config = replace(QUICK, steps=None, epochs=2)
    trainer = make_trainer(config)
    assert (trainer.steps_per_epoch, trainer.total_steps) == (2, 4)
    places = [record.place for record in trainer.steps()]
    assert [(p.epoch, p.batch, p.finished_epochs) for p in places] == [
        (1, 4, 0),
        (1, 7, 1),
        (2, 4, 1),
        (2, 7, 2),
    ]
    assert [step for step in range(1, 5) if trainer.saves_at(step)] == [4]
    assert make_trainer(replace(config, save_every=1)).saves_at(2)
    upstreams = make_trainer(replace(config, compat=True))
    records = list(upstreams.steps())
    assert [(r.place.epoch, r.place.batch) for r in records] == [(1, 5), (2, 5)]
    assert [r.values["lr"] for r in records] == [0.01, 0.002]
    assert {record["lr"] for record in run(trainer)} <= {0.002}


def test_few_clips_are_learned_where_upstream_takes_no_step() -> None:
    """Batches of at most a quarter of the clips: here four an epoch."""
    config = replace(QUICK, steps=None, epochs=1, batch_size=8)
    assert len(run(make_trainer(config, clips=8))) == 1
    with pytest.raises(DataError, match="an epoch of 4 batches has no step"):
        make_trainer(replace(config, compat=True), clips=8)


def test_it_learns_and_the_pull_is_logged() -> None:
    config = T2STrainingConfig(epochs=5, batch_size=2, lr=0.02)
    trainer, clips = make_trainer(config, clips=8), [batch_of([clip]) for clip in random_clips(8)]
    before = score_codes(trainer.model, clips)
    assert trainer.note_score(before.ce)
    records = run(trainer)
    after = score_codes(trainer.model, clips)
    assert after.ce < before.ce - 0.2
    assert after.top3_accuracy > before.top3_accuracy
    assert trainer.note_score(after.ce)
    assert not trainer.note_score(after.ce)
    assert trainer.place.best_step == 5
    assert records[0]["loss_reg"] == 0 < records[-1]["loss_reg"]
    assert records[-1]["grad_norm_reg"] > 0
    for record in records:
        parts = record["loss_ce"] + record["loss_reg"]
        assert record["loss_total"] == pytest.approx(parts, rel=1e-6)
    free = run(make_trainer(replace(config, pretrained_reg_strength=0.0, steps=2), clips=8))
    assert free[-1]["loss_reg"] == 0


def test_numbers_that_are_none_stop_it_in_one_sentence() -> None:
    trainer = make_trainer()
    steps = trainer.steps()
    next(steps)
    trainer.model.bert_proj.bias = mx.full((64,), mx.nan)
    with pytest.raises(TrainingStopped, match=r"^loss_ce is no longer a number at step 2$"):
        next(steps)
    assert trainer.place.step == 1


def test_layers_are_computed_again_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, recomputes in ((1 << 40, False), (1 << 20, True), (0, False)):
        monkeypatch.setattr(t2s_trainer, "usable_memory", lambda memory=memory: memory)
        assert make_trainer().recomputes == recomputes
        for wish in ("on", "off"):
            trainer = make_trainer(replace(QUICK, checkpoint_activations=wish))
            assert trainer.recomputes == (wish == "on")


def test_a_prepared_folder_is_trained_on(tmp_path: Path) -> None:
    texts = [TextLine(name, ["HH", "AH0"] * 4, "text") for name in "ab"]
    write_text_lines(tmp_path / "2-name2text.txt", texts, [None, None])
    codes = [CodeLine(name, [place % EOS for place in range(40)]) for name in "ab"]
    write_code_lines(tmp_path / "6-name2semantic.tsv", codes)
    config = replace(QUICK, steps=1, dpo=True)
    trainer = T2STrainer(tiny_gpt(), PreparedT2S(tmp_path, "v2", eos=EOS, dpo=True), config)
    assert trainer.voice.largest_batch(2) == T2SClips(2, phonemes=32, codes=64)
    (record,) = run(trainer)
    assert record["ce"] > 0
    assert record["loss_dpo"] > 0


@pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="the memory was measured on a CPU"
)
@pytest.mark.parametrize("recomputes", [False, True])
def test_the_memory_of_a_step_is_foretold(recomputes: bool) -> None:
    model = tiny_gpt()
    step = T2SStep(model, ScaledAdam(1e-3), recomputes=recomputes)
    clips = T2SClips(8, phonemes=40, codes=160)
    row = np.arange(200, dtype=np.int32) % EOS
    clip = Clip(row[:40], row[:160], np.zeros((40, BERT), np.float32), row[:0])
    batch = batch_of([clip] * clips.size)
    mx.eval(batch, step.state)
    gc.collect()
    elsewhere = mx.get_active_memory() - 12 * count_weights(model.config)
    mx.reset_peak_memory()
    mx.eval(step([batch], mx.random.key(0)), step.state)
    peak = mx.get_peak_memory() - elsewhere
    expected = estimate_t2s_peak(model.config, clips, recomputes=recomputes)
    assert expected == pytest.approx(peak, rel=0.25)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "sgd"}, "optimizer 'sgd' is not one of scaled_adam, adamw"),
        ({"checkpoint_activations": "maybe"}, "checkpoint_activations is 'maybe'"),
        ({"accumulate": 0}, "accumulate is 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(QUICK, **changes)


def test_a_voice_of_other_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="`dpo` and `compat` are not those"):
        T2STrainer(tiny_gpt(), RandomVoice(4), replace(QUICK, dpo=True))


def test_the_rate_rises_and_falls_where_it_is_told_to() -> None:
    changes = {"lr": 1.0, "steps": 8, "warm_up": 4, "last_share": 0.1, "optimizer": "adamw"}
    trainer = make_trainer(replace(QUICK, **changes))
    found = [trainer._set_rate(step) for step in range(9)]
    cosine = [1 - 0.9 * (0.5 - 0.5 * np.cos(np.pi * step / 8)) for step in range(9)]
    expected = [rate * min(1, (step + 1) / 4) for step, rate in enumerate(cosine)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[-1] == pytest.approx(0.1)
    assert make_trainer(replace(QUICK, lr=1.0))._set_rate(3) == 1.0


def test_codes_that_are_replaced_are_inputs_and_never_targets() -> None:
    model, batch = tiny_gpt(), batch_of(random_clips(3))
    plain = t2s_terms(model, batch, key=mx.random.key(1))
    none = t2s_terms(model, batch, replaced=0.0, key=mx.random.key(1))
    some = t2s_terms(model, batch, replaced=0.4, key=mx.random.key(1))
    judged = t2s_terms(model, batch, replaced=0.4)
    assert plain.losses["loss_ce"].item() == none.losses["loss_ce"].item()
    assert some.losses["loss_ce"].item() != plain.losses["loss_ce"].item()
    assert some.targets.item() == plain.targets.item()
    assert judged.losses["loss_ce"].item() == t2s_terms(model, batch).losses["loss_ce"].item()
