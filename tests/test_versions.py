"""v1, v2Pro and v2ProPlus are trained as v2 is; the Pro models with speaker vectors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from typer.testing import CliRunner

import mlx_vits
from mlx_vits import finetune
from mlx_vits.audio.files import write_wav
from mlx_vits.checkpoints.base import Base, load_discriminator
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.cli import app
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.finetune import FinetuneOptions
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.goldens import generator, last, tensors
from tests.support.repeating import same
from tests.support.tiny import (
    RATE,
    SEGMENT,
    SV_DIM,
    TEXTS,
    Silent,
    add_speaker_vectors,
    hum,
    make_base,
    make_voice,
)

QUICK = VITSTrainingConfig(steps=3, batch_size=2, segment_size=SEGMENT)


def _prepared(root: Path, base: Base, clips: int = 5) -> Path:
    config = base.read_generator().config
    folder = prepare_voice(make_voice(root / "clips", clips), root / "prepared", base, config)
    if config.model.is_pro:
        add_speaker_vectors(folder)
    return folder


def _start(root: Path, base: Base, data: Path, training: VITSTrainingConfig = QUICK) -> Path:
    output = root / "run"
    finetune.start(FinetuneOptions("me", data, base, output, training), Silent())
    return output


@pytest.mark.parametrize("version", ["v1", "v2Pro", "v2ProPlus"])
def test_a_run_of_every_version(version: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", version=version)
    run = _start(tmp_path, base, _prepared(tmp_path, base))
    voice = mlx_vits.load(run)
    assert (voice.version, voice.info) == (version, "1epoch_3iteration")
    assert voice.convert(hum(1.5), RATE, TEXTS[0]).size
    before = read_tensors(tmp_path / "base" / "generator.safetensors").tensors
    after = read_tensors(run / "me.safetensors").tensors
    frozen = ("ssl_proj.", "quantizer.")
    for name, array in before.items():
        assert mx.array_equal(array, after[name]).item() == name.startswith(frozen), name
    exported = mlx_vits.load(run / "me_e1_s3.pth")
    assert exported.version == version
    header = {"v2Pro": b"05", "v2ProPlus": b"06"}.get(version, b"PK")
    assert (run / "me_e1_s3.pth").read_bytes()[:2] == header


def test_a_pro_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", version="v2Pro")
    data = _prepared(tmp_path, base, clips=3)
    whole = _start(tmp_path / "whole", base, data)
    part = _start(tmp_path / "part", base, data, VITSTrainingConfig(**vars(QUICK) | {"steps": 2}))
    finetune.resume(part, Silent(), steps=3)
    ours, theirs = (read_tensors(run / "me.safetensors").tensors for run in (part, whole))
    assert all(mx.array_equal(ours[name], theirs[name]).item() for name in theirs)


def test_the_speaker_vector_reaches_the_batch_and_the_voice(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", version="v2Pro")
    data = _prepared(tmp_path, base, clips=3)
    prepared = PreparedVoice(data, base.read_generator().config)
    batch = next(prepared.batches(2, 0, 1))
    assert batch.sv_emb.shape == (2, SV_DIM)
    run = _start(tmp_path, base, data)
    voice = mlx_vits.load(run)
    own = voice.convert(hum(1.5), RATE, TEXTS[0])
    assert voice.speaker_vector is not None
    again = voice.convert(
        hum(1.5), RATE, TEXTS[0], refer=run / "reference.wav", sv_emb=voice.speaker_vector
    )
    assert same(own, again)
    other = voice.convert(
        hum(1.5), RATE, TEXTS[0], refer=run / "reference.wav", sv_emb=-voice.speaker_vector
    )
    assert not np.array_equal(own, other)
    with pytest.raises(CheckpointError, match=r"needs a speaker vector .*7-sv_cn"):
        voice.convert(hum(1.5), RATE, TEXTS[0], refer=run / "reference.wav")


def test_several_references_on_the_command_line(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", version="v2Pro")
    data = _prepared(tmp_path, base, clips=3)
    write_wav(tmp_path / "said.wav", hum(1.5), RATE)
    names = ["clip_0.wav", "clip_1.wav"]
    options = [f"--refer={data / '5-wav32k' / name}" for name in names]
    vectors = [f"--speaker-vector={data / '7-sv_cn' / name}.pt" for name in names]
    arguments = ["convert", tmp_path / "base", tmp_path / "said.wav", TEXTS[0], tmp_path / "o.wav"]
    command = [str(argument) for argument in arguments]
    done = CliRunner().invoke(app, [*command, *options, *vectors])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*command, *options, vectors[0]])
    assert done.exit_code == 1
    assert "give one for each --refer" in done.stderr


def test_what_a_pro_base_cannot_train_on_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", version="v2Pro")
    data = _prepared(tmp_path, base, clips=3)
    with pytest.raises(CheckpointError, match="has no speaker encoder"):
        _start(tmp_path, base, tmp_path / "clips")
    vector = data / "7-sv_cn" / "clip_1.wav.pt"
    for content, words in (
        (np.zeros((1, SV_DIM + 1), np.float32), r"clip_1\.wav\.pt: does not hold a speaker vector"),
        (np.full((1, SV_DIM), np.nan, np.float32), r"clip_1\.wav\.pt: holds values that are no"),
    ):
        write_torch_archive(vector, content)
        with pytest.raises(DataError, match=words):
            _start(tmp_path / "x", base, data)
    vector.unlink()
    with pytest.raises(DataError, match=r"clip_1\.wav has no speaker vector in 7-sv_cn"):
        _start(tmp_path / "y", base, data)
    shutil.rmtree(data / "7-sv_cn")
    with pytest.raises(DataError, match=r"holds no clip to train on .*no speaker vector"):
        _start(tmp_path / "z", base, data)


def test_a_discriminator_of_another_version_is_refused(tmp_path: Path) -> None:
    pro, old = (make_base(tmp_path / v, version=v) for v in ("v2Pro", "v2"))
    for base, other, words in (
        (pro, old, "is a discriminator of v1 and v2, but the generator is v2Pro"),
        (old, pro, "is a discriminator of v2Pro and v2ProPlus, but the generator is v2"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_discriminator(other.discriminator, base.read_generator().config)


@pytest.mark.parametrize("part", ["sv_emb", "ge_to512", "prelu"])
def test_gradients_of_the_speaker_path(part: str) -> None:
    """Against a difference quotient: no golden has the gradients of a Pro model."""
    model, data = generator("sovits_v2Pro"), tensors("sovits_v2Pro", "decode.safetensors")
    model.freeze()
    module = getattr(model, part)
    module.unfreeze()
    spec = last(data["in/refer0"])

    def objective() -> mx.array:
        # By way of decode: in the training forward the posterior's style is detached.
        style = model.embed_style(spec, mx.ones((1, spec.shape[1], 1)), data["in/sv_emb0"])
        noise = last(data["in/noise_s1.0"])
        out = model.decode(data["in/codes"][0], data["in/text"], [style], noise=noise)
        return mx.mean(mx.square(out.wav)) + mx.mean(mx.square(out.m_p))

    grads: Any = nn.value_and_grad(model, objective)()[1]
    flat: Any = tree_flatten(grads[part])
    norm = mx.sqrt(sum(mx.sum(mx.square(g)) for _, g in flat)).item()
    origin, step = module.parameters(), 0.05
    found = []
    for sign in (1, -1):
        module.update(tree_map(lambda w, g, s=sign: w + s * step * g / norm, origin, grads[part]))
        found.append(objective().item())
    assert (found[0] - found[1]) / (2 * step) == pytest.approx(norm, rel=2e-2)
