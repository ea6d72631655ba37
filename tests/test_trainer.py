"""The loop: what is trained, at which rate, and that resuming changes nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits import accel
from mlx_vits.checkpoints.base import Base, load_discriminator, load_generator
from mlx_vits.checkpoints.run import read_run_state, write_run_state
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.errors import CheckpointError, TrainingStopped
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.training import batches
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.regularization import relative_drift, take_anchor
from mlx_vits.training.step import draw_step
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig, freeze_for
from tests.support.tiny import SEGMENT, make_base, make_voice, tiny_config

QUICK = VITSTrainingConfig(steps=4, batch_size=2, lr_g=1e-4, lr_d=1e-4, segment_size=SEGMENT)


class Place:
    """Where trainers come from."""

    def __init__(self, root: Path):
        self.base: Base = make_base(root / "base")
        source = make_voice(root / "clips", clips=3)
        self.prepared = prepare_voice(source, root / "prepared", self.base, tiny_config())

    def trainer(self, config: VITSTrainingConfig = QUICK) -> VITSTrainer:
        file = self.base.read_generator()
        generator = load_generator(file, config.weight_norm)
        freeze_for(generator, config.train)
        return VITSTrainer(
            generator,
            load_discriminator(self.base.discriminator, file.config),
            PreparedVoice(self.prepared, file.config),
            config,
            take_anchor(generator),
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    return Place(tmp_path_factory.mktemp("trainer"))


def _run(trainer: VITSTrainer, steps: int | None = None) -> list[dict[str, float]]:
    records = []
    for record in trainer.steps():
        records.append(record.values)
        if len(records) == steps:
            break
    return records


def _flat(trainer: VITSTrainer) -> dict[str, np.ndarray]:
    leaves: Any = tree_flatten(trainer.trees())
    return {name: np.array(array) for name, array in leaves}


def test_losses_have_one_spelling_and_add_up(place: Place) -> None:
    record = _run(place.trainer(), 1)[0]
    parts = ["loss_gen", "loss_fm", "loss_mel", "loss_kl", "loss_commit", "loss_reg"]
    wanted = {*parts, "loss_d", "loss_total", "grad_norm_g", "grad_norm_d", "lr_g", "lr_d"}
    assert wanted | {"step", "epoch", "grad_norm_task", "grad_norm_reg", "peak_fake"} == set(record)
    assert record["loss_total"] == pytest.approx(sum(record[name] for name in parts), rel=1e-6)
    assert (record["step"], record["epoch"]) == (1, 1)


def test_everything_moves_but_what_is_frozen(place: Place) -> None:
    trainer = place.trainer()
    before = state_of(trainer.generator)
    _run(trainer, 2)
    after = state_of(trainer.generator)
    still = {name for name in before if mx.array_equal(before[name], after[name])}
    assert {name.split(".")[0] for name in still} == {"ssl_proj", "quantizer"}
    for group in trainer.trees()["optimizer_g"]["states"]:
        assert not {"ssl_proj", "quantizer"} & set(group)


def test_decoder_alone(place: Place) -> None:
    trainer = place.trainer(replace(QUICK, train="decoder"))
    before = state_of(trainer.generator)
    _run(trainer, 2)
    after = state_of(trainer.generator)
    moved = {name for name in before if not mx.array_equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"dec", "ref_enc"}


def test_rates_decay_by_epoch_from_the_first_and_text_is_slower(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "repeat_items", list)  # epochs of few steps
    trainer = place.trainer(replace(QUICK, steps=None, epochs=2))
    per_epoch = trainer.steps_per_epoch
    assert trainer.total_steps == 2 * per_epoch
    records = _run(trainer)
    assert len(records) == 2 * per_epoch
    assert [records[i]["lr_g"] for i in (0, per_epoch)] == [1e-4 * 0.999875, 1e-4 * 0.999875**2]
    assert [records[i]["epoch"] for i in (per_epoch - 1, per_epoch)] == [1, 2]
    slow, rest = trainer.trees()["optimizer_g"]["states"]
    assert slow["learning_rate"].item() == pytest.approx(0.4 * rest["learning_rate"].item())
    assert set(slow["enc_p"]) == {"encoder_text", "text_embedding", "mrte"}
    assert rest["step"].item() == 2 * per_epoch


@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        (1, {}),
        (3, {}),
        (2, {"weight_norm": "folded", "train": "decoder", "bias_correction": False}),
        (2, {"compiled": True}),
        (2, {"accel": "off"}),
    ],
    ids=str,
)
def test_a_resumed_run_equals_the_run_that_never_stopped(
    place: Place, tmp_path: Path, stop: int, changes: Any
) -> None:
    changes = dict(changes)
    with accel.use(changes.pop("accel", accel.backend())):
        config = replace(QUICK, **changes)
        whole = place.trainer(config)
        records = _run(whole)
        first = place.trainer(config)
        before = _run(first, stop)
        write_run_state(tmp_path / "state.safetensors", first.trees(), first.place)
        second = place.trainer(config)
        second.restore(read_run_state(tmp_path / "state.safetensors"), "state")
        assert second.place.step == stop
        assert before + _run(second) == records
    ours, theirs = _flat(second), _flat(whole)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert np.array_equal(ours[name], array), name


def test_a_state_of_other_settings_is_refused(place: Place, tmp_path: Path) -> None:
    trainer = place.trainer()
    write_run_state(tmp_path / "state.safetensors", trainer.trees(), trainer.place)
    state = read_run_state(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="belongs to a run with other settings"):
        place.trainer(replace(QUICK, weight_norm="folded")).restore(state, "state")
    (tmp_path / "state.safetensors").write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        read_run_state(tmp_path / "state.safetensors")


def test_seeds_differ_and_repeat(place: Place) -> None:
    first = _run(place.trainer(), 2)
    assert _run(place.trainer(), 2) == first
    assert _run(place.trainer(replace(QUICK, seed=7)), 2) != first


@pytest.mark.machine("g++")
@pytest.mark.parametrize("kind", ["unfused", pytest.param("fused", marks=pytest.mark.slow)])
def test_a_compiled_step_gives_the_same(place: Place, kind: str) -> None:
    """To rounding: fused kernels contract multiply and add, and Adam turns that into signs.

    On a Linux CPU only the slow test fuses; on a GPU both do what training does there.
    """
    runs = [_run(place.trainer(replace(QUICK, compiled=flag, steps=3))) for flag in (False, True)]
    for step, (eager, compiled) in enumerate(zip(*runs, strict=True)):
        rel = 2e-5 if step == 0 else 2e-3
        for name, value in eager.items():
            if name not in ("loss_reg", "grad_norm_reg"):  # squares of differences this small
                assert compiled[name] == pytest.approx(value, rel=rel, abs=1e-6), name


def test_a_loss_that_is_no_number_stops_the_run(place: Place) -> None:
    trainer = place.trainer()
    _run(trainer, 2)
    endless = trainer.voice.endless

    def poisoned(*args: Any) -> Any:
        for fields in endless(*args):
            yield fields | {"spec": fields["spec"] * np.float32("nan")}

    trainer.voice.endless = poisoned  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="no longer a number at step 3") as caught:
        _run(trainer)
    assert caught.value.step == 3
    assert trainer.place.step == 2


def test_kept_spectrograms_change_nothing(place: Place) -> None:
    """A run that computes them, one that finds them, and one that can keep none."""
    runs = []
    for _ in range(2):
        trainer = place.trainer()
        runs.append(_run(trainer))
        assert trainer.waited_seconds > 0
    kept = place.prepared / "spectrograms"
    assert any(kept.iterdir())
    shutil.rmtree(kept)
    kept.write_bytes(b"in the way")
    try:
        runs.append(_run(place.trainer()))
    finally:
        kept.unlink()
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.slow
def test_a_strong_pull_halves_the_drift(place: Place) -> None:
    def drift(strength: float) -> float:
        quick = replace(QUICK, steps=14, lr_g=5e-4, batch_size=1)
        trainer = place.trainer(replace(quick, pretrained_reg_strength=strength))
        anchor = take_anchor(trainer.generator)
        _run(trainer)
        return float(np.mean(list(relative_drift(trainer.generator, anchor).values())))

    free, plan = drift(0.0), drift(0.001)
    assert plan == pytest.approx(free, rel=0.05)  # at the plan's strength it hardly acts
    assert drift(1e4) <= 0.5 * free


def test_the_pull_has_its_share_of_the_gradient(place: Place) -> None:
    trainer = place.trainer(replace(QUICK, pretrained_reg_strength=1e4))
    records = _run(trainer, 2)
    assert records[0]["grad_norm_reg"] == records[0]["loss_reg"] == 0.0  # nothing has moved yet
    assert records[1]["loss_reg"] > 0
    for record in records:
        task, reg, total = (record[f"grad_norm_{name}"] for name in ("task", "reg", "g"))
        assert abs(task - reg) - 1e-3 <= total <= task + reg + 1e-3


def test_slices_lie_within_the_clip_and_cover_it(place: Place) -> None:
    trainer = place.trainer()
    batch = next(trainer.voice.batches(2, 1, 1))
    config = trainer.generator.config
    starts = [np.array(draw_step(mx.random.key(i), batch, config).ids_slice) for i in range(300)]
    lengths = np.array(batch.spec_lengths)
    last = lengths - config.segment_frames
    assert (np.min(starts, axis=0) == 0).all()
    assert (np.max(starts, axis=0) == last).all()


def test_dropout_and_noise_come_from_the_key(place: Place) -> None:
    first = place.trainer()
    batch = next(first.voice.batches(2, 1, 1))
    draws = [draw_step(mx.random.key(i), batch, first.generator.config) for i in (1, 1, 2)]
    assert mx.array_equal(draws[0].noise, draws[1].noise)
    assert not mx.array_equal(draws[0].noise, draws[2].noise)
    losses = []
    for draw in draws:  # the same noise, only dropout differs
        step = place.trainer()._gan
        losses.append(step.run(batch, draw._replace(noise=draws[0].noise)).losses["loss_kl"].item())
    assert losses[0] == losses[1] != losses[2]


def _run_ahead(trainer: VITSTrainer, *settled: int) -> list[tuple[dict[str, float], bool]]:
    """Records, and whether the weights are of the next step already."""
    records = []
    for record in trainer.steps(lambda step: step in settled):
        assert trainer.place == record.place
        records.append((record.values, trainer.is_ahead))
    return records


def test_steps_begun_ahead_are_the_same(place: Place) -> None:
    one_by_one, ahead = place.trainer(), place.trainer()
    records = _run(one_by_one)
    found = _run_ahead(ahead, 2)
    assert [values for values, _ in found] == records
    # Nothing is begun where the weights are to be read, nor after the last step.
    assert [is_ahead for _, is_ahead in found] == [True, False, True, False]
    ours, theirs = _flat(ahead), _flat(one_by_one)
    assert all(np.array_equal(ours[name], array) for name, array in theirs.items())


def test_a_settled_step_has_its_own_weights(place: Place) -> None:
    """What is saved there is what the run that goes one by one saves."""
    one_by_one, ahead = place.trainer(), place.trainer()
    _run(one_by_one, 3)
    for _ in ahead.steps(lambda step: step == 3):
        if not ahead.is_ahead:
            break
    assert ahead.place.step == 3
    ours, theirs = _flat(ahead), _flat(one_by_one)
    assert all(np.array_equal(ours[name], array) for name, array in theirs.items())


@pytest.mark.parametrize("settled", [(), (2,), (3,)])
def test_the_step_that_broke_is_named_where_the_next_was_begun(
    place: Place, settled: tuple[int, ...]
) -> None:
    trainer = place.trainer()
    endless = trainer.voice.endless

    def poisoned(*args: Any) -> Any:
        for number, fields in enumerate(endless(*args), start=1):
            yield fields | {"spec": fields["spec"] * np.float32("nan" if number == 3 else 1)}

    trainer.voice.endless = poisoned  # type: ignore[method-assign]
    seen = []

    def run() -> None:
        for record in trainer.steps(lambda step: step in settled):
            seen.append(record.place.step)

    with pytest.raises(TrainingStopped, match="no longer a number at step 3") as caught:
        run()
    assert caught.value.step == 3
    assert seen == [1, 2]
    assert trainer.place.step == 2
