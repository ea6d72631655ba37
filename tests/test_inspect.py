"""`mlx-vits inspect`: every kind of file."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from typer.testing import CliRunner

import mlx_vits
from mlx_vits.checkpoints.base import Base, load_discriminator, load_generator
from mlx_vits.checkpoints.run import Place, write_run_state
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.checkpoints.voice_file import write_voice
from mlx_vits.cli import app
from mlx_vits.config import VERSIONS
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.tools.inspect import upstream_guess
from mlx_vits.tools.inspect.layers import upstream_tensors
from mlx_vits.training.optimizers import build_optimizers
from tests.support.looking import golden_voice, look_at, said_of
from tests.support.tiny import make_base

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: Any) -> dict[str, Base]:
    root = tmp_path_factory.mktemp("bases")
    return {v: make_base(root / v, version=v) for v in ("v2", "v2ProPlus")}


@pytest.fixture(scope="module")
def model(bases: dict[str, Base]) -> SynthesizerTrn:
    return load_generator(bases["v2"].read_generator())


@pytest.fixture
def weight(model: SynthesizerTrn) -> dict[str, np.ndarray]:
    """A tiny v2 generator's tensors, for a test to damage."""
    return {name: np.array(array) for name, array in state_of(model).items()}


def _run(*arguments: Any) -> Any:
    return RUNNER.invoke(app, ["inspect", *map(str, arguments)])


def test_the_command(tmp_path: Path) -> None:
    path = golden_voice("v2")
    look = look_at(path, path)
    done = _run(path, "--against", path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.split() == look.text.split()
    done = _run("--json", path, "--against", path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout) == look.facts


@pytest.mark.parametrize("version", VERSIONS)
def test_an_exported_voice_of_gpt_sovits(version: str) -> None:
    path, is_pro = golden_voice(version), "Pro" in version
    facts, net, text = look_at(path)
    assert len(facts["nets"]) == 1
    assert (facts["kind"], net["form"], net["net"]) == ("exported voice", "exported", "generator")
    assert net["version"]["version"] == version
    assert set(net["version"]["claims"].values()) <= {version, "05", "06"}
    assert net["precisions"] == {"float16": net["tensors"]}
    assert net["tensors"] == len(read_torch_archive(path)["weight"])
    assert (net["trained"]["epochs"], net["trained"]["steps"]) == (8, 64)
    assert net["reduced"] is True
    missing = net["missing"]
    assert missing["compared"]
    assert missing["posterior"] is False
    for found in ("lacking", "unknown", "misshapen", "not_finite", "zero_channels"):
        assert not missing[found], found
    assert missing["quantizer_fitted"] is True
    assert missing["config_fields"] == []
    forms = net["weight_norm"]
    assert forms["live"] > 100
    assert not any(forms[form] for form in ("folded", "split", "mixed", "broken"))
    view = net["version"]["gpt_sovits"]
    # These are small files: by size, GPT-SoVITS takes every one without a code for v1.
    assert (view["guess"], view["opens_as"]) == (version if is_pro else "v1", version)
    assert view["by"] == ("version code" if is_pro else "size")
    assert not said_of(net)
    assert "cannot be trained from" in text
    assert "8 epochs, 64 steps" in text
    assert ("sv_emb" in text) == is_pro


def test_a_base_with_all_its_parts(bases: dict[str, Base]) -> None:
    folder = bases["v2ProPlus"].generator
    facts, _, text = look_at(folder)
    generator, discriminator = facts["nets"]
    assert generator["version"]["version"] == "v2ProPlus"
    assert discriminator["version"]["version"] == "v2Pro and v2ProPlus"
    assert generator["missing"]["posterior"] is True
    assert not said_of(generator) + said_of(discriminator)
    assert len(discriminator["layers"]) == 8
    assert set(facts["parts"]) == {"content_encoder/weights.safetensors"}
    modules = [module["name"] for module in generator["modules"]]
    assert modules[:4] == ["enc_p", "dec", "enc_q", "flow"]
    assert sum(m["parameters"] for m in generator["modules"]) == generator["parameters"]
    assert "base, to fine-tune from" in text
    assert "judges every 3rd sample" in text
    # Each part by itself, too.
    assert look_at(folder / "discriminator.safetensors").net["net"] == "discriminator"
    encoder = look_at(folder / "content_encoder" / "weights.safetensors")
    assert encoder.facts["kind"] == "content encoder"
    assert "content encoder" in look_at(folder / "content_encoder").text
    part = look_at(folder / "generator.safetensors").net
    assert part["config_source"] == "config.json beside it"


def test_a_base_says_what_it_lacks_and_where_it_came_from(
    bases: dict[str, Base], tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(bases["v2"].generator, folder)
    (folder / "discriminator.safetensors").unlink()
    shutil.rmtree(folder / "content_encoder")
    row = {"repository": "a/b", "revision": "0123", "path": "s2G.pth", "size": 1, "sha256": "abc"}
    (folder / "checksums.json").write_text(json.dumps({"files": [row]}))
    facts, net, text = look_at(folder)
    assert "no discriminator.safetensors beside it" in said_of(net, "note")
    assert "no content_encoder" in facts["faults"][0]
    assert facts["downloads"] == [row]
    assert "a/b/s2G.pth at 0123, SHA-256 abc" in text
    (folder / "checksums.json").write_text("[1")
    # A long path is broken anywhere.
    assert "checksums.json:isdamaged" in "".join(look_at(folder).text.split())


@pytest.mark.parametrize("name", ["voice", "voice.safetensors", "voice.pth"])
def test_a_voice_of_ours(name: str, model: SynthesizerTrn, tmp_path: Path) -> None:
    path = tmp_path / name
    write_voice(path, state_of(model), model.config, info="2epoch_9iteration", name="me")
    _, net, text = look_at(path)
    assert net["trained"]["steps"] == 9
    assert not said_of(net)
    assert (net["missing"]["posterior"], net["form"]) == (
        (False, "exported") if name.endswith("pth") else (True, "voice")
    )
    assert net["config_source"]
    assert "9 steps" in text


def _run_folder(folder: Path, base: Base, model: SynthesizerTrn, scheme: Any = "upstream") -> Path:
    """A run at step 3, by hand."""
    folder.mkdir()
    options = {"training": {"epochs": 2, "lr_g": 1e-4}, "save_every": 50, "tensorboard": False}
    path = str(base.generator)
    info = RunInfo("me", "clips", "prepared", "0", "v2", path, "", "", "beef", "en", options)
    info.write(folder)
    generator = load_generator(base.read_generator(), scheme)
    discriminator = load_discriminator(base.discriminator, model.config)
    for buffers in (generator.ssl_proj, generator.quantizer):
        buffers.freeze()
    optimizers = build_optimizers(model.config)
    optimizers.generator.init(generator.trainable_parameters())
    optimizers.discriminator.init(discriminator.trainable_parameters())
    trees = {
        "generator": generator.parameters(),
        "discriminator": discriminator.parameters(),
        "optimizer_g": optimizers.generator.state,
        "optimizer_d": optimizers.discriminator.state,
    }
    place = Place(step=3, epoch=1, batch=3, best_step=2, best_score=1.5)
    write_run_state(folder / "checkpoints" / "last.safetensors", trees, place)
    state = state_of(generator)
    write_voice(folder / "me.safetensors", state, model.config, info="1epoch_3iteration", name="me")
    return folder


def test_a_run(bases: dict[str, Base], model: SynthesizerTrn, tmp_path: Path) -> None:
    folder = _run_folder(tmp_path / "run", bases["v2"], model)
    facts, _, text = look_at(folder)
    assert facts["run"]["generator_sha256"] == "beef"
    assert facts["run"]["options"]["training"]["epochs"] == 2
    assert facts["run"]["place"]["step"] == 3
    assert facts["faults"] == []
    assert "step 3, epoch 1; best at step 2 (mel distance 1.500)" in text
    assert "--against" in text
    last = folder / "checkpoints" / "last.safetensors"
    generator, discriminator = look_at(last).facts["nets"]
    assert generator["config_source"] == "the run's voice"
    assert generator["optimizer"]["without"] == ["ssl_proj.bias", "ssl_proj.weight"]
    assert generator["optimizer"]["steps"] == [0]
    assert discriminator["optimizer"]["without"] == []
    assert not said_of(generator) + said_of(discriminator)
    # What the state holds, in MLX's axes, is what the voice holds in PyTorch's.
    same = look_at(last, folder).net
    assert {row["levels"]["moved"] for row in same["layers"]} == {0.0}
    assert {module["moved"] for module in same["modules"]} <= {0.0, None}


def test_a_run_that_has_only_a_part_of_its_files(
    bases: dict[str, Base], model: SynthesizerTrn, tmp_path: Path
) -> None:
    folder = _run_folder(tmp_path / "run", bases["v2"], model, "plan")
    (folder / "run.json").write_text('{"voice": "me", "base": "v2"}')
    facts = look_at(folder).facts
    assert "run.json: is damaged" in facts["faults"][0]
    assert facts["run"]["base"] == "v2"
    (folder / "me.safetensors").unlink()
    generator = look_at(folder).net
    assert generator["form"] == "state"
    assert "--weight-norm" in said_of(generator, "note")
    assert generator["weight_norm"]["split"] == ["dec.conv_post", "dec.conv_pre"]
    assert not said_of(generator)
    (folder / "checkpoints" / "last.safetensors").unlink()
    done = _run(folder)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1


def _resume(weight: dict[str, Any], order: list[list[str]], untrained: tuple[str, ...]) -> Any:
    state, groups, index = {}, [], 0
    for names in order:
        groups.append({"lr": 5e-5, "params": list(range(index, index + len(names)))})
        for name in names:
            if not name.startswith(untrained):
                step, moment = np.array(16.0, np.float32), np.zeros_like(weight[name])
                state[index] = {"step": step, "exp_avg": moment, "exp_avg_sq": moment}
            index += 1
    optimizer = {"state": state, "param_groups": groups}
    return {"model": weight, "iteration": 8, "optimizer": optimizer, "learning_rate": 1e-4}


def test_a_resume_file_of_a_generator(weight: dict[str, Any], tmp_path: Path) -> None:
    slow = ("enc_p.text_embedding.", "enc_p.encoder_text.", "enc_p.mrte.")
    names = [name for name in weight if not name.startswith("quantizer.")]
    order = [[name for name in names if not name.startswith(slow)]]
    order += [[name for name in names if name.startswith(part)] for part in slow]
    content = _resume(weight, order, ("ssl_proj.",))
    path = tmp_path / "G_64.pth"
    # A resume file states no configuration; this one lies beside it, as its lists are unusual.
    (tmp_path / "config.json").write_text(
        json.dumps({"model": {"resblock_dilation_sizes": [[1, 3], [1]], "version": "v2"}})
    )
    write_torch_archive(path, content)
    _, net, text = look_at(path)
    optimizer = net["optimizer"]
    assert (optimizer["epoch"], optimizer["learning_rate"]) == (8, 1e-4)
    assert (optimizer["steps"], optimizer["rates"]) == ([16], [5e-5] * 4)
    assert optimizer["without"] == ["ssl_proj.weight", "ssl_proj.bias"]
    assert optimizer["tensors"] == optimizer["with_moments"] + 2 == len(names)
    assert not said_of(net)
    assert "D_64.pth beside it" in said_of(net, "note")
    assert "16 steps; epoch 8 done" in text
    # Other parts that were not trained are named, and so are moments that are not whole.
    content = _resume(weight, order, ("ssl_proj.", "ref_enc."))
    content["optimizer"]["state"][3]["exp_avg"] = np.full(2, np.nan, np.float32)
    content["optimizer"]["state"][4]["step"] = np.array(17.0, np.float32)
    write_torch_archive(path, content)
    net = look_at(path).net
    assert "not trained, in ref_enc" in said_of(net, "note")
    assert net["optimizer"]["not_finite"] == net["optimizer"]["misshapen"] == [order[0][3]]
    assert "from 16 to 17" in said_of(net)


def test_a_resume_file_of_a_discriminator(
    bases: dict[str, Base], model: SynthesizerTrn, tmp_path: Path
) -> None:
    net = load_discriminator(bases["v2"].discriminator, model.config)
    weight = {name: np.array(array) for name, array in state_of(net).items()}
    write_torch_archive(tmp_path / "D_64.pth", _resume(weight, [list(weight)], ("no such",)))
    facts = look_at(tmp_path / "D_64.pth").net
    assert facts["kind"] == "resume file of the discriminator"
    assert facts["optimizer"]["without"] == []
    assert not said_of(facts)


@pytest.mark.parametrize("scheme", ["upstream", "plan"])
def test_the_axes_of_a_state_are_told_by_name(scheme: Any, model: SynthesizerTrn) -> None:
    """The rule by which a state's arrays get PyTorch's axes agrees with every layer's own kind."""
    for net in (SynthesizerTrn(model.config, scheme), MultiPeriodDiscriminator(model.config)):
        leaves: Any = tree_flatten(net.parameters())
        found, state = upstream_tensors(dict(leaves)), state_of(net)
        shared = set(found) & set(state)
        assert len(shared) > 0.7 * len(state)
        assert all(found[name].shape == state[name].shape for name in shared)


HEAD = b"PK\x03\x04" + bytes(100)
KIB, MIB = 1024, 1024**2


@pytest.mark.parametrize(
    ("head", "size", "version", "rows", "guess", "opens", "fits", "words"),
    [
        (HEAD, 82978 * KIB - 1, "v1", 322, "v1", "v1", True, "its size"),
        (HEAD, 82978 * KIB - 1, "v2", 732, "v1", "v2", True, "then for v2 by its phoneme table"),
        (HEAD, 82978 * KIB, "v2", 732, "v2", "v2", True, "its size"),
        (HEAD, 82978 * KIB, "v1", 322, "v2", "v1", True, "then for v1"),
        (HEAD, 130 * MIB, "v2Pro", 732, "v2", "v2", False, "fails when it is to speak"),
        (HEAD, 700 * MIB, "v2", 732, "v3", "v3", False, "cannot open it"),
        (b"05" + HEAD[2:], 1, "v2Pro", 732, "v2Pro", "v2Pro", True, "the version code 05"),
        (b"06" + HEAD[2:], 1, "v2Pro", 732, "v2ProPlus", "v2ProPlus", True, "code 06"),
        (b"05" + HEAD[2:], 1, "v2", 732, "v2Pro", "v2Pro", False, "random layers"),
        (b"00" + HEAD[2:], 1, "v2", 732, "v1", "v2", True, "then for v2"),
        (b"03" + HEAD[2:], 1, "v2", 732, "v3", "v3", False, "cannot open it"),
        (b"KNOWN" + HEAD, 1, "v1", 322, "v2", "v1", True, "those of s2G488k.pth, then for v1"),
    ],
)
def test_what_gpt_sovits_takes_a_file_for(
    head: bytes,
    size: int,
    version: str,
    rows: int,
    guess: str,
    opens: str,
    fits: bool,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = hashlib.md5(b"KNOWN" + HEAD, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(upstream_guess._CHECKSUMS, known, ("s2G488k.pth", "v2"))
    view = upstream_guess.judge(head, size, version=version, text_rows=rows)
    assert (view.guess, view.opens_as, view.fits) == (guess, opens, fits)
    assert words in view.words


def test_mistakes_are_one_sentence(
    bases: dict[str, Base], weight: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "folder").mkdir()
    write_tensors(tmp_path / "other.safetensors", {"a": mx.zeros(1)})
    write_torch_archive(tmp_path / "v3.pth", {"weight": weight}, version_code="03")
    diffusion = weight | {"cfm.x": weight["dec.conv_pre.bias"]}
    write_torch_archive(tmp_path / "cfm.pth", {"weight": diffusion})
    last = tmp_path / "last.safetensors"
    write_tensors(last, {"else/x": mx.zeros(1)}, {"place": json.dumps(asdict(Place()))})
    base = bases["v2"].generator
    for arguments, words in (
        (("no.pth",), "there is no such file"),
        (("no.safetensors",), "there is no such file"),
        ((tmp_path / "text.pth",), "is not a PyTorch file"),
        ((tmp_path / "text.safetensors",), "not a safetensors file"),
        ((tmp_path / "folder",), "is no voice, base or run"),
        ((tmp_path / "other.safetensors",), "holds no generator"),
        ((tmp_path / "v3.pth",), "v3"),
        ((tmp_path / "cfm.pth",), "v3 or v4"),
        ((last,), "is not the state of a run"),
        ((base, "--against", "no.pth"), "there is no such file"),
        (
            (base / "discriminator.safetensors", "--against", base / "generator.safetensors"),
            "no layer in common",
        ),
    ):
        done = _run(*arguments)
        assert done.exit_code == 1, arguments
        assert done.stderr.startswith("error: "), done.output
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert not done.stdout


def test_a_base_by_its_name(
    bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLX_VITS_HOME", str(bases["v2"].generator.parent))
    monkeypatch.chdir(tmp_path)
    assert look_at("v2").facts["kind"] == "base, to fine-tune from"
    assert mlx_vits.load("v2").version == "v2"
