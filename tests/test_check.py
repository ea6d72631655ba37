"""`mlx-vits check`: what is wrong with prepared data, found where it was put."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mlx_vits.audio.files import write_wav
from mlx_vits.checkpoints.base import weights_home
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.errors import DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.tools.check.subject import find_subject
from mlx_vits.tools.check.verdict import judge
from mlx_vits.training.batches import PreparedVoice
from tests.support.checking import change_wav, check, run, said
from tests.support.tiny import RATE, add_speaker_vectors, hum, make_base, make_voice, tiny_config

CLIPS = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    root = tmp_path_factory.mktemp("voice")
    source = make_voice(root / "clips", clips=CLIPS)
    prepare_voice(source, root / "prepared", make_base(root / "base"), tiny_config())
    return root


@pytest.fixture
def prepared(made: Path, tmp_path: Path) -> Path:
    """A prepared voice of ours, for a test to damage."""
    return Path(shutil.copytree(made / "prepared", tmp_path / "prepared"))


@pytest.fixture
def upstreams(prepared: Path) -> Path:
    """The same as GPT-SoVITS leaves it: no manifest, nothing held out."""
    (prepared / layout.MANIFEST).unlink()
    shutil.rmtree(prepared / layout.HELD_OUT_FOLDER)
    return prepared


def _change_features(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = folder / layout.SSL_FOLDER / f"{name}.pt"
    write_torch_archive(path, np.ascontiguousarray(change(read_torch_archive(path).copy())))


def _change_line(folder: Path, index: int, change: Callable[[str], str]) -> None:
    path = folder / layout.TEXT_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[index] = change(lines[index])
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_a_prepared_voice(made: Path) -> None:
    facts, verdict = check(made / "prepared", batch_size=3)
    assert (facts.kind, facts.version) == ("a folder that mlx_vits prepared", "v2")
    assert (facts.training.clips, facts.held_out.clips) == (CLIPS - 1, 1)
    assert facts.training.lengths is not None
    np.testing.assert_allclose(facts.training.lengths, (1.2, 1.8, 2.4), atol=1e-3)
    assert sum(row.clips for row in facts.training.histogram) == CLIPS - 1
    plan = PreparedVoice(made / "prepared", tiny_config()).plan(3, seed=0, epoch=1)
    assert facts.epoch_steps == len(plan)
    assert facts.versions["v2"] == ""
    assert facts.versions["v1"] == "it has v2 phonemes"
    assert "no speaker vectors" in facts.versions["v2ProPlus"]
    assert facts.alignment is not None
    assert facts.alignment.widths == {"16": CLIPS}
    assert facts.alignment.same + facts.alignment.one_more == CLIPS
    assert not facts.left_out
    assert not any(clip.faults for clip in facts.clips)
    # Thirteen seconds of five sentences: little, and told so, but no reason to refuse it.
    assert (verdict.word, verdict.status) == ("too little", 0)
    assert "sentences said more than once" in said(verdict)
    assert "English phonemes never occur" in said(verdict)


def test_the_command_prints_a_page_and_json(made: Path) -> None:
    done = run(made / "prepared")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("Too little: 13 s of speech") for line in lines)
    done = run(made / "prepared", "--json", "--batch-size", 2)
    values = json.loads(done.stdout)
    assert values["verdict"]["word"] == "too little"
    assert values["clips"][0]["sound"]["rate"] == RATE
    assert values["clips"][0]["features"]["width"] == 16
    assert values["batch_size"] == 2
    assert {"level", "words"} == set(values["verdict"]["remarks"][0])


def test_the_demos_voice_is_good_though_dull() -> None:
    facts, verdict = check(weights_home() / "demo" / "voice")
    assert (verdict.word, verdict.status) == ("good", 0)
    assert [remark.level for remark in verdict.remarks] == ["note"]
    assert "nothing above 10.9 kHz" in said(verdict)
    assert facts.phonemes.missing == ("OY", "Y", "ZH")
    assert (facts.phonemes.inventory, facts.phonemes.guessed) == (39, {"woodcutters": 1})
    for seconds, word in ((49.0, "usable"), (29.0, "too little")):
        short = replace(facts, training=replace(facts.training, seconds=seconds))
        assert judge(short).word == word


def test_voices_are_found_by_name(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voices" / "me").mkdir(parents=True)
    (tmp_path / "voices" / "me" / "prepared").symlink_to(made / "prepared")
    for voice in ("me", "voices/me", "voices/me/prepared"):
        assert find_subject(voice).manifest is not None


def test_what_cannot_be_read_is_one_sentence(prepared: Path, tmp_path: Path) -> None:
    def refused(folder: Path, words: str, *options: Any) -> None:
        done = run(folder, *options)
        assert done.exit_code == 1
        assert words in done.stderr
        assert done.stderr.count("\n") == 1

    refused(tmp_path / "nowhere", "no such folder")
    refused(prepared / layout.TEXT_FILE, "is a file")
    refused(prepared, "--held-out: is for clips", "--held-out", 1)
    (prepared / layout.MANIFEST).write_text("{")
    refused(prepared, "is damaged")
    (prepared / layout.TEXT_FILE).unlink()
    refused(prepared, "preparation was not finished")
    (tmp_path / "untold").mkdir()
    write_wav(tmp_path / "untold" / "a.wav", hum(1.2), RATE)
    refused(tmp_path / "untold", "recordings without transcripts")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / layout.TEXT_FILE).write_text("")
    refused(tmp_path / "empty", "lists no clip")


def test_features_that_stop_training_are_named(prepared: Path) -> None:
    def set_nan(tensor: np.ndarray) -> np.ndarray:
        tensor[0, 3, 5] = np.nan
        return tensor

    _change_features(prepared, "clip_0.wav", lambda tensor: tensor[:, :, :-4])
    _change_features(prepared, "clip_1.wav", set_nan)
    _change_features(prepared, "clip_2.wav", lambda tensor: tensor[:, :8])
    (prepared / layout.SSL_FOLDER / "clip_3.wav.pt").write_bytes(b"not a tensor")
    facts, verdict = check(prepared)
    assert facts.alignment is not None
    assert facts.alignment.misaligned == ("clip_0.wav",)
    assert facts.alignment.not_finite == ("clip_1.wav",)
    assert facts.alignment.widths == {"16": CLIPS - 2, "8": 1}
    assert [clip.name for clip in facts.clips if clip.faults] == [
        "clip_0.wav",
        "clip_1.wav",
        "clip_3.wav",
    ]
    assert (verdict.word, verdict.status) == ("broken", 2)
    assert "stop at 3 clips (clip_0.wav, clip_1.wav, clip_3.wav)" in said(verdict)
    assert "differ in width (16 in 6, 8 in 1)" in said(verdict)
    assert run(prepared).exit_code == 2


def test_a_held_out_clip_has_to_be_whole(prepared: Path) -> None:
    part = prepared / layout.HELD_OUT_FOLDER
    (part / layout.SSL_FOLDER / f"clip_{CLIPS - 1}.wav.pt").unlink()
    facts, verdict = check(prepared)
    assert facts.clips[-1].faults[0].endswith("is missing")
    assert verdict.word == "broken"


def test_a_folder_of_upstreams_and_what_its_loader_leaves_out(upstreams: Path) -> None:
    facts, verdict = check(upstreams)
    assert facts.kind == "a folder that GPT-SoVITS prepared"
    assert (facts.versions["v1"], facts.versions["v2"]) == ("", "")
    assert {clip.language for clip in facts.clips} == {"en"}
    assert facts.held_out.clips == 0
    assert "No clip is held out" in said(verdict)

    (upstreams / layout.SSL_FOLDER / "clip_0.wav.pt").unlink()
    (upstreams / layout.WAV_FOLDER / "clip_1.wav").unlink()
    change_wav(upstreams / layout.WAV_FOLDER / "clip_2.wav", lambda wav: wav[:9000])
    _change_line(upstreams, 3, lambda line: line.replace("\t", " ", 1))
    _change_line(upstreams, 4, lambda line: line.replace(" ", " ☃ ", 1))
    facts, verdict = check(upstreams)
    rules = {row.name: row.rule for row in facts.left_out}
    assert rules == {
        "clip_0.wav": "no features",
        "clip_1.wav": "no recording",
        "clip_2.wav": "too short or too long",
        "clip_4.wav": "unknown phoneme",
        "line 4": "not four columns",
        "clip_3.wav": "not listed",
    }
    assert facts.training.clips == 2
    # mlx_vits refuses such a folder, so the check has to say so.
    with pytest.raises(DataError):
        PreparedVoice(upstreams, tiny_config())
    assert verdict.status == 2
    assert "GPT-SoVITS leaves such clips out without a word" in said(verdict)


def test_a_run_of_upstreams_lies_in_its_data(upstreams: Path) -> None:
    (upstreams / "logs_s2_v2").mkdir()
    facts, _ = check(upstreams / "logs_s2_v2")
    assert facts.path == str(upstreams)


def test_a_run_of_ours(made: Path, tmp_path: Path) -> None:
    data = made / "prepared"
    here, options = str(data), {"training": {"batch_size": 5}}
    own = layout.fingerprint(data)
    info = RunInfo("tiny", here, here, own, "tiny", "", "", "", "", "en", options)
    info.write(tmp_path)
    facts, _ = check(tmp_path)
    assert (facts.kind, facts.batch_size) == ("the data of a run, prepared by mlx_vits", 5)
    assert not facts.note
    RunInfo(**(vars(info) | {"prepared_sha256": "0"})).write(tmp_path)
    assert "changed since the run began" in said(check(tmp_path)[1])
    RunInfo(**(vars(info) | {"prepared": "gone"})).write(tmp_path)
    assert run(tmp_path).exit_code == 1


def test_other_wav_forms(upstreams: Path) -> None:
    path = upstreams / layout.WAV_FOLDER / "clip_0.wav"
    soundfile.write(path, hum(1.2, rate=16000), 16000, subtype="PCM_16")
    path = upstreams / layout.WAV_FOLDER / "clip_1.wav"
    soundfile.write(path, np.stack([hum(1.4)] * 2, axis=1), RATE, subtype="FLOAT")
    facts, verdict = check(upstreams)
    assert facts.alignment is not None
    assert [name.split(" ", 1)[1] for name in facts.alignment.odd_files] == [
        "(16000 Hz)",
        "(2 channels, not 16-bit WAV)",
    ]
    assert "is at 16000 Hz instead of 32000" in facts.clips[0].faults[0]
    assert verdict.word == "too little"  # that clip is left out, as GPT-SoVITS leaves it out


def test_speaker_vectors(prepared: Path) -> None:
    add_speaker_vectors(prepared)
    folder = prepared / layout.SPEAKER_FOLDER
    vector = read_torch_archive(folder / "clip_0.wav.pt")
    random = np.random.default_rng(0)
    vectors = [vector + 0.1 * random.standard_normal(vector.shape) for _ in range(CLIPS)]
    parts = [prepared] * (CLIPS - 1) + [prepared / layout.HELD_OUT_FOLDER]
    vectors[2] = -vectors[2]
    for index, (part, values) in enumerate(zip(parts, vectors, strict=True)):
        path = layout.speaker_file(part, f"clip_{index}.wav")
        write_torch_archive(path, values.astype(np.float32))
    facts, verdict = check(prepared)
    units = np.concatenate([v / np.linalg.norm(v) for v in vectors])
    pairs = (units @ units.T)[np.triu_indices(CLIPS, 1)]
    assert facts.vectors is not None
    assert facts.vectors.mean_cosine == pytest.approx(pairs.mean(), abs=1e-5)
    assert (facts.vectors.clips, facts.vectors.outliers) == (CLIPS, ("clip_2.wav",))
    assert facts.versions["v2Pro"] == ""
    assert "unlike the others" in said(verdict)

    write_torch_archive(folder / "clip_0.wav.pt", np.full_like(vector, np.inf))
    (folder / "clip_1.wav.pt").unlink()
    facts, verdict = check(prepared)
    assert "holds values that are not numbers" in facts.versions["v2Pro"]
    assert facts.versions["v2"] == ""
    assert verdict.status == 0  # v2 takes none
    assert f"{CLIPS - 2} of {CLIPS} clips have a whole speaker vector" in said(verdict)
    manifest = prepared / layout.MANIFEST
    manifest.write_text(manifest.read_text().replace('"version": "v2"', '"version": "v2Pro"'))
    assert "prepared for v2Pro, which cannot be trained on it" in said(check(prepared)[1])


def test_unknown_sounds(prepared: Path) -> None:
    _change_line(prepared, 0, lambda line: line.replace(" ", " UNK ", 3))
    facts, verdict = check(prepared)
    assert (facts.phonemes.unknown, facts.phonemes.unknown_in) == (3, ("clip_0.wav",))
    assert "3 sounds unknown (UNK), in clip_0.wav" in said(verdict)
