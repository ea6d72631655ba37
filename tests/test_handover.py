"""Runs between here and GPT-SoVITS's resume files: bit for bit, in both directions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten
from typer.testing import CliRunner

from mlx_vits import finetune, train
from mlx_vits.checkpoints.run import Place, read_run_state
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.checkpoints.upstream_run import (
    LATEST,
    SIDE_FILE,
    UpstreamRun,
    read_upstream_run,
    resume_files,
)
from mlx_vits.cli import app
from mlx_vits.errors import CheckpointError, DataError, UserError
from mlx_vits.finetune import FinetuneOptions
from mlx_vits.finetune.handover import hand_over
from mlx_vits.finetune.run import FinetuneRun
from mlx_vits.finetune.takeover import options_for
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.training import batches
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.tiny import (
    SEGMENT,
    Silent,
    add_speaker_vectors,
    make_base,
    make_voice,
    tiny_config,
)

WHOLE = VITSTrainingConfig(steps=4, batch_size=2, segment_size=SEGMENT, lr_g=1e-4, lr_d=1e-4)
G, D = f"G_{LATEST}.pth", f"D_{LATEST}.pth"


class Scene:
    """A base, a prepared voice, and runs from them."""

    def __init__(self, root: Path, version: str = "v2"):
        self.root = root
        self.base = make_base(root / "base", version=version)
        config = tiny_config(version)
        self.data = prepare_voice(make_voice(root / "clips", 3), root / "data", self.base, config)
        if config.model.is_pro:
            add_speaker_vectors(self.data)

    def run(self, name: str, **changes: Any) -> Path:
        training = VITSTrainingConfig(**(vars(WHOLE) | changes))
        output = self.root / name
        finetune.start(FinetuneOptions("me", self.data, self.base, output, training), Silent())
        return output


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Scene:
    return Scene(tmp_path_factory.mktemp("handover"))


@pytest.fixture(scope="module")
def handed(place: Scene) -> Path:
    """The files of a run that was stopped after 2 of 4 steps, within its first epoch."""
    run = place.run("part", steps=2)
    hand_over(run, place.root / "logs" / "logs_s2_v2")
    return place.root / "logs" / "logs_s2_v2"


@pytest.fixture
def files(handed: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(handed, tmp_path / "logs_s2_v2"))


def _take_over(folder: Path, output: Path, **given: Any) -> UpstreamRun:
    run = read_upstream_run(folder)
    options = options_for(folder, run, given | {"output": output})
    finetune.take_over(options, run, Silent())
    return run


def _flat(trees: Any) -> dict[str, np.ndarray]:
    leaves: Any = tree_flatten(trees)
    rates = ("learning_rate",)  # of every step the trainer's own
    return {name: np.array(array) for name, array in leaves if not name.endswith(rates)}


def _assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert ours[name].tobytes() == array.tobytes(), name


def _spoil(path: Path, **changes: Any) -> None:
    write_torch_archive(path, read_torch_archive(path) | changes)


@pytest.mark.parametrize("version", ["v1", "v2", "v2Pro", "v2ProPlus"])
def test_there_and_back_changes_no_bit(version: str, tmp_path: Path) -> None:
    place = Scene(tmp_path, version)
    run = place.run("run", steps=2)
    assert hand_over(run, tmp_path / "logs")[0].startswith("GPT-SoVITS counts whole epochs")
    back = read_upstream_run(tmp_path / "logs")
    state = read_run_state(run / "checkpoints" / "last.safetensors")
    _assert_same(_flat(back.trees), _flat(state.trees))
    assert back.side is not None
    assert back.side.place == state.place
    assert back.generator.config.version == version


def test_a_run_taken_over_equals_the_run_that_never_stopped(
    place: Scene, handed: Path, tmp_path: Path
) -> None:
    whole = place.run("whole")
    run = _take_over(handed, tmp_path / "on", steps=4)
    assert run.notes == []
    for name in ("me.safetensors", "checkpoints/last.safetensors"):
        ours, theirs = (read_tensors(folder / name).tensors for folder in (tmp_path / "on", whole))
        _assert_same(_flat(ours), _flat(theirs))
    ours, theirs = (
        (folder / "losses.jsonl").read_text().splitlines() for folder in (tmp_path / "on", whole)
    )
    assert ours == theirs[2:]
    verdicts = [json.loads((f / "verdict.json").read_text()) for f in (tmp_path / "on", whole)]
    assert verdicts[0]["base_score"] == verdicts[1]["base_score"]
    assert verdicts[0]["drift"] == verdicts[1]["drift"]
    # And once more: it is a run of its own now.
    finetune.resume(tmp_path / "on", Silent(), steps=5)


def test_a_run_taken_over_that_was_killed_at_once_is_resumed(
    place: Scene, handed: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whole = place.run("unkilled")

    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneRun, "run", killed)
        with pytest.raises(RuntimeError, match="killed"):
            _take_over(handed, tmp_path / "on", steps=4)
    finetune.resume(tmp_path / "on", Silent())
    ours, theirs = (read_tensors(f / "me.safetensors").tensors for f in (tmp_path / "on", whole))
    _assert_same(_flat(ours), _flat(theirs))


def test_the_files_are_upstreams(place: Scene, handed: Path) -> None:
    for name, groups in ((G, 4), (D, 1)):
        content = read_torch_archive(handed / name)
        assert list(content) == ["model", "iteration", "optimizer", "learning_rate"]
        assert all(array.dtype == np.float32 for array in content["model"].values())
        assert content["iteration"] == 0  # its first epoch is not over
        assert content["learning_rate"] == 1e-4
        assert len(content["optimizer"]["param_groups"]) == groups
        numbers = [n for g in content["optimizer"]["param_groups"] for n in g["params"]]
        assert numbers == list(range(len(numbers)))
    assert any(name.startswith("enc_q.") for name in read_torch_archive(handed / G)["model"])
    assert not any("quantizer" in path.name for path in handed.iterdir())


def test_what_is_not_trained_has_a_number_and_no_state(place: Scene, tmp_path: Path) -> None:
    for part, trained in (("all", None), ("decoder", ("dec.", "ref_enc."))):
        run = place.run(f"train_{part}", steps=1, train=part)
        hand_over(run, tmp_path / part)
        content = read_torch_archive(tmp_path / part / G)
        names = [name for name in content["model"] if not name.startswith("quantizer.")]
        slow = ("enc_p.text_embedding.", "enc_p.encoder_text.", "enc_p.mrte.")
        order = [n for n in names if not n.startswith(slow)]
        order += [n for start in slow for n in names if n.startswith(start)]
        expected = {
            index
            for index, name in enumerate(order)
            if (name.startswith(trained) if trained else not name.startswith("ssl_proj."))
        }
        optimizer = content["optimizer"]
        assert set(optimizer["state"]) == expected
        sizes = [len(group["params"]) for group in optimizer["param_groups"]]
        assert sum(sizes) == len(names)
        for index, entry in optimizer["state"].items():
            assert entry["exp_avg"].shape == content["model"][order[index]].shape
            assert (entry["step"].shape, entry["step"].item()) == ((), 1.0)
        (tmp_path / part / SIDE_FILE).unlink()
        on = read_upstream_run(tmp_path / part)
        assert options_for(tmp_path / part, on, {"data_dir": place.data}).training.train == part


def test_the_rate_is_decayed_once_an_epoch_and_never_twice(
    place: Scene, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(batches, "_FEWEST_ITEMS", 3)  # an epoch of 2 steps
    run = place.run("epochs", steps=None, epochs=1)
    assert hand_over(run, tmp_path / "logs") == [
        "The run comes from a small base: mlx_vits goes on with it, GPT-SoVITS cannot."
    ]
    content = read_torch_archive(tmp_path / "logs" / G)
    assert content["iteration"] == 1
    groups = content["optimizer"]["param_groups"]
    assert [group["initial_lr"] for group in groups] == [1e-4, 4e-5, 4e-5, 4e-5]
    assert [group["lr"] for group in groups] == [1e-4 * 0.999875] + 3 * [4e-5 * 0.999875]
    (tmp_path / "logs" / SIDE_FILE).unlink()  # as if upstream had written them
    _take_over(tmp_path / "logs", tmp_path / "on", data_dir=place.data, steps=3)
    line = json.loads((tmp_path / "on" / "losses.jsonl").read_text().splitlines()[0])
    assert (line["step"], line["epoch"]) == (3, 2)
    assert line["lr_g"] == 1e-4 * 0.999875**2


def test_without_our_side_file_it_is_said_what_is_not_known(
    place: Scene, files: Path, tmp_path: Path
) -> None:
    (files / SIDE_FILE).unlink()
    run = read_upstream_run(files)
    assert "no mlx_vits.json beside these files" in run.notes[0]
    options = options_for(files, run, {"data_dir": place.data, "output": tmp_path / "on"})
    assert "pretrained weights of this run are not known" in run.notes[1]
    assert options.base.generator == files / G
    assert (options.training.batch_size, options.training.lr_g) == (2, 1e-4)
    assert options.training.text_low_lr_rate == 0.4


def test_a_run_without_its_pretrained_weights_keeps_what_it_came_with(
    place: Scene, files: Path, tmp_path: Path
) -> None:
    (files / SIDE_FILE).unlink()
    _take_over(files, tmp_path / "on", data_dir=place.data, steps=1)
    shutil.rmtree(files / "x", ignore_errors=True)
    for path in (files / G, files / "config.json"):
        path.unlink()
    (tmp_path / "on").rename(tmp_path / "elsewhere")
    finetune.resume(tmp_path / "elsewhere", Silent(), steps=2)
    kept = read_tensors(tmp_path / "elsewhere" / "taken_over.safetensors").tensors
    assert any(name.startswith("enc_q.") for name in kept)


def test_a_side_file_of_other_files_is_not_believed(files: Path) -> None:
    _spoil(files / G, learning_rate=2e-4)
    run = read_upstream_run(files)
    assert run.side is None
    assert "belongs to other files" in run.notes[0]


def test_other_data_than_the_runs_is_said_aloud(place: Scene, handed: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(place.data, tmp_path / "data"))
    (data / "mlx_vits.json").unlink()
    run = read_upstream_run(handed)
    options_for(handed, run, {"data_dir": data})
    assert "is not the data that the run was started with" in run.notes[0]


def test_an_older_run_of_upstreams_own_rate_is_kept(files: Path) -> None:
    """GPT-SoVITS decays again for every finished epoch when it resumes."""
    content = read_torch_archive(files / G)
    for group in content["optimizer"]["param_groups"]:
        group["lr"] = group["initial_lr"] * 0.999875**15
    content["iteration"] = 8
    write_torch_archive(files / G, content)
    _spoil(files / D, iteration=8)
    run = read_upstream_run(files)
    assert run.rates.lr_g * 0.999875**8 == pytest.approx(1e-4 * 0.999875**15, rel=1e-12)
    assert run.rates.text_low_lr_rate == 0.4


def test_the_newest_files_are_taken_by_number(files: Path) -> None:
    shutil.copy(files / G, files / "G_9.pth")
    shutil.copy(files / D, files / "D_9.pth")
    shutil.copy(files / D, files / "D_10.pth")
    (files / G).rename(files / "G_100.pth")
    assert resume_files(files) == (files / "G_100.pth", files / D)
    for name in ("G_100.pth", "G_9.pth"):
        (files / name).unlink()
    assert resume_files(files) is None
    with pytest.raises(CheckpointError, match=r"holds no G_\*\.pth with a D_\*\.pth"):
        read_upstream_run(files)


def _optimizer(files: Path, change: Any, name: str = G) -> None:
    content = read_torch_archive(files / name)
    change(content["optimizer"])
    write_torch_archive(files / name, content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: _spoil(f / G, iteration=5), "is of epoch 5, but D_233333333333.pth of epoch 0"),
        (lambda f: _spoil(f / G, iteration="x"), "lacks iteration"),
        (lambda f: _spoil(f / G, optimizer={}), "lacks iteration, learning_rate or the optimizer"),
        (lambda f: shutil.copy(f / D, f / G), "is no resume file of a generator"),
        (lambda f: _optimizer(f, lambda o: o.update(state=[])), "state is damaged"),
        (lambda f: _optimizer(f, lambda o: o["state"].update({10**6: {}})), "state is damaged"),
        (lambda f: _optimizer(f, lambda o: o["state"][0].pop("exp_avg")), "enc_p.ssl_proj.weight"),
        (
            lambda f: _optimizer(f, lambda o: o["state"][0].update(step=np.array(7, np.float32))),
            r"different numbers of steps \(2 to 7\)",
        ),
        (lambda f: _optimizer(f, lambda o: o["state"][0].update(step="7")), "state is damaged"),
        (
            lambda f: _optimizer(f, lambda o: o["state"][0].update(step=float("nan"))),
            "state is damaged",
        ),
        (
            lambda f: _optimizer(f, lambda o: o["param_groups"][1]["params"].append(9)),
            "belongs to another version",
        ),
        (
            lambda f: _optimizer(f, lambda o: o["param_groups"][0]["params"].reverse()),
            "state is damaged",
        ),
        (lambda f: _optimizer(f, lambda o: o["param_groups"][0].pop("lr")), "state is damaged"),
        (lambda f: (f / SIDE_FILE).write_text("{"), "take it away to go on without it"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / D).write_bytes((f / D).read_bytes()[:-500]), "damaged or cut short"),
    ],
)
def test_what_is_damaged_is_named(files: Path, spoil: Any, words: str) -> None:
    spoil(files)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_upstream_run(files)
    assert "\n" not in str(caught.value)
    assert str(files) in str(caught.value)


def test_what_cannot_be_handed_over_is_named(place: Scene, handed: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        hand_over(place.root / "clips", tmp_path / "x")
    with pytest.raises(UserError, match="holds resume files already"):
        hand_over(place.root / "part", handed)
    folded = place.run("folded", steps=1, weight_norm="folded")
    with pytest.raises(CheckpointError, match="--weight-norm folded"):
        hand_over(folded, tmp_path / "x")
    shutil.rmtree(folded / "checkpoints")
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_taken_over_is_named(
    place: Scene, handed: Path, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"has done its 2 steps .* give more with --epochs"):
        _take_over(handed, tmp_path / "on", steps=2)
    run = read_upstream_run(files)
    with pytest.raises(DataError, match="give the folder that the run was trained on"):
        options_for(files, run, {"data_dir": tmp_path})
    make_base(tmp_path / "pro", version="v2Pro")
    with pytest.raises(UserError, match="is a v2 run, but the base pro is v2Pro"):
        _take_over(files, tmp_path / "on", base=str(tmp_path / "pro"), steps=9, data_dir=place.data)
    assert not (tmp_path / "on").exists()


def test_on_the_command_line(place: Scene, handed: Path, tmp_path: Path) -> None:
    runner, logs = CliRunner(), tmp_path / "logs" / "logs_s2_v2"
    done = runner.invoke(app, ["export", str(place.root / "part"), str(logs), "--resumable"])
    assert done.exit_code == 0, done.output
    assert "resume files" in done.output
    resume = ["--resume", str(logs), "--output", str(tmp_path / "on")]
    done = runner.invoke(train.app, [*resume, "--steps", "3"])
    assert done.exit_code == 0, done.output
    assert "0 epochs are done; continuing at the learning rates 0.0001" in done.output
    assert (tmp_path / "on" / "verdict.json").is_file()
    for flag, value in (("--train", "decoder"), ("--transcripts", "x"), ("--max-sil-kept", "20")):
        done = runner.invoke(train.app, [*resume, flag, value])
        assert done.exit_code == 1
        assert f"{flag}: cannot be chosen when a run of GPT-SoVITS is resumed" in done.stderr


def test_the_place_knows_when_an_epoch_is_over() -> None:
    assert Place(step=5, epoch=2, batch=3).finished_epochs == 1
    assert Place(step=5, epoch=2, batch=3, epoch_batches=4).finished_epochs == 1
    assert Place(step=5, epoch=2, batch=4, epoch_batches=4).finished_epochs == 2
