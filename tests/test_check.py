"""`mlx-vits check`: what is wrong with a voice's data, found where it was put."""

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
from typer.testing import CliRunner

from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.checkpoints.base import weights_home
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.torch_archive import read_torch_archive, write_torch_archive
from mlx_vits.cli import app
from mlx_vits.errors import DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.text.english_words import dictionary
from mlx_vits.tools.check.facts import Verdict, VoiceFacts
from mlx_vits.tools.check.gather import gather
from mlx_vits.tools.check.outliers import CLIPPED_SHARE, NOISY_RANGE_DB, far_from_median
from mlx_vits.tools.check.phonemes import ARPABET, LEAST_CORRELATION, is_english, merge_stress
from mlx_vits.tools.check.sound import measure_sound
from mlx_vits.tools.check.subject import CheckOptions, find_subject
from mlx_vits.tools.check.verdict import judge
from mlx_vits.training.batches import PreparedVoice
from tests.support.tiny import RATE, add_speaker_vectors, hum, make_base, make_voice, tiny_config

RUNNER = CliRunner()
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


@pytest.fixture
def clips(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "clips", tmp_path / "clips"))


def _look(folder: Path, **options: Any) -> tuple[VoiceFacts, Verdict]:
    facts = gather(find_subject(str(folder), CheckOptions(**options)))
    return facts, judge(facts)


def _said(verdict: Verdict) -> str:
    return " ".join(remark.words for remark in verdict.remarks)


def _run(*arguments: Any) -> Any:
    return RUNNER.invoke(app, ["check", *map(str, arguments)])


def _change_features(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = folder / layout.SSL_FOLDER / f"{name}.pt"
    write_torch_archive(path, np.ascontiguousarray(change(read_torch_archive(path).copy())))


def _change_wav(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    recording = read_audio(path)
    write_wav(path, change(recording.wav), recording.rate)


def _change_line(folder: Path, index: int, change: Callable[[str], str]) -> None:
    path = folder / layout.TEXT_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[index] = change(lines[index])
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_a_prepared_voice(made: Path) -> None:
    facts, verdict = _look(made / "prepared", batch_size=3)
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
    assert "sentences said more than once" in _said(verdict)
    assert "English phonemes never occur" in _said(verdict)


def test_the_command_prints_a_page_and_json(made: Path) -> None:
    done = _run(made / "prepared")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("Too little: 13 s of speech") for line in lines)
    done = _run(made / "prepared", "--json", "--batch-size", 2)
    values = json.loads(done.stdout)
    assert values["verdict"]["word"] == "too little"
    assert values["clips"][0]["sound"]["rate"] == RATE
    assert values["clips"][0]["features"]["width"] == 16
    assert values["batch_size"] == 2
    assert {"level", "words"} == set(values["verdict"]["remarks"][0])


def test_the_demos_voice_is_good_though_dull() -> None:
    facts, verdict = _look(weights_home() / "demo" / "voice")
    assert (verdict.word, verdict.status) == ("good", 0)
    assert [remark.level for remark in verdict.remarks] == ["note"]
    assert "nothing above 10.9 kHz" in _said(verdict)
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
        done = _run(folder, *options)
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
    facts, verdict = _look(prepared)
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
    assert "stop at 3 clips (clip_0.wav, clip_1.wav, clip_3.wav)" in _said(verdict)
    assert "differ in width (16 in 6, 8 in 1)" in _said(verdict)
    assert _run(prepared).exit_code == 2


def test_a_held_out_clip_has_to_be_whole(prepared: Path) -> None:
    part = prepared / layout.HELD_OUT_FOLDER
    (part / layout.SSL_FOLDER / f"clip_{CLIPS - 1}.wav.pt").unlink()
    facts, verdict = _look(prepared)
    assert facts.clips[-1].faults[0].endswith("is missing")
    assert verdict.word == "broken"


def test_a_folder_of_upstreams_and_what_its_loader_leaves_out(upstreams: Path) -> None:
    facts, verdict = _look(upstreams)
    assert facts.kind == "a folder that GPT-SoVITS prepared"
    assert (facts.versions["v1"], facts.versions["v2"]) == ("", "")
    assert {clip.language for clip in facts.clips} == {"en"}
    assert facts.held_out.clips == 0
    assert "No clip is held out" in _said(verdict)

    (upstreams / layout.SSL_FOLDER / "clip_0.wav.pt").unlink()
    (upstreams / layout.WAV_FOLDER / "clip_1.wav").unlink()
    _change_wav(upstreams / layout.WAV_FOLDER / "clip_2.wav", lambda wav: wav[:9000])
    _change_line(upstreams, 3, lambda line: line.replace("\t", " ", 1))
    _change_line(upstreams, 4, lambda line: line.replace(" ", " ☃ ", 1))
    facts, verdict = _look(upstreams)
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
    assert "GPT-SoVITS leaves such clips out without a word" in _said(verdict)


def test_a_run_of_upstreams_lies_in_its_data(upstreams: Path) -> None:
    (upstreams / "logs_s2_v2").mkdir()
    facts, _ = _look(upstreams / "logs_s2_v2")
    assert facts.path == str(upstreams)


def test_a_run_of_ours(made: Path, tmp_path: Path) -> None:
    data = made / "prepared"
    here, options = str(data), {"training": {"batch_size": 5}}
    own = layout.fingerprint(data)
    info = RunInfo("tiny", here, here, own, "tiny", "", "", "", "", "en", options)
    info.write(tmp_path)
    facts, _ = _look(tmp_path)
    assert (facts.kind, facts.batch_size) == ("the data of a run, prepared by mlx_vits", 5)
    assert not facts.note
    RunInfo(**(vars(info) | {"prepared_sha256": "0"})).write(tmp_path)
    assert "changed since the run began" in _said(_look(tmp_path)[1])
    RunInfo(**(vars(info) | {"prepared": "gone"})).write(tmp_path)
    assert _run(tmp_path).exit_code == 1


def test_other_wav_forms(upstreams: Path) -> None:
    path = upstreams / layout.WAV_FOLDER / "clip_0.wav"
    soundfile.write(path, hum(1.2, rate=16000), 16000, subtype="PCM_16")
    path = upstreams / layout.WAV_FOLDER / "clip_1.wav"
    soundfile.write(path, np.stack([hum(1.4)] * 2, axis=1), RATE, subtype="FLOAT")
    facts, verdict = _look(upstreams)
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
    facts, verdict = _look(prepared)
    units = np.concatenate([v / np.linalg.norm(v) for v in vectors])
    pairs = (units @ units.T)[np.triu_indices(CLIPS, 1)]
    assert facts.vectors is not None
    assert facts.vectors.mean_cosine == pytest.approx(pairs.mean(), abs=1e-5)
    assert (facts.vectors.clips, facts.vectors.outliers) == (CLIPS, ("clip_2.wav",))
    assert facts.versions["v2Pro"] == ""
    assert "unlike the others" in _said(verdict)

    write_torch_archive(folder / "clip_0.wav.pt", np.full_like(vector, np.inf))
    (folder / "clip_1.wav.pt").unlink()
    facts, verdict = _look(prepared)
    assert "holds values that are no numbers" in facts.versions["v2Pro"]
    assert facts.versions["v2"] == ""
    assert verdict.status == 0  # v2 takes none
    assert f"{CLIPS - 2} of {CLIPS} clips have a whole speaker vector" in _said(verdict)
    manifest = prepared / layout.MANIFEST
    manifest.write_text(manifest.read_text().replace('"version": "v2"', '"version": "v2Pro"'))
    assert "prepared for v2Pro, which cannot be trained on it" in _said(_look(prepared)[1])


@pytest.mark.machine
def test_clips_before_they_are_prepared(clips: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no ffmpeg
    facts, verdict = _look(clips)
    assert (facts.is_prepared, facts.alignment, facts.versions) == (False, None, {})
    assert (facts.training.clips, facts.held_out.clips) == (CLIPS - 1, 1)
    assert _look(clips, held_out=3)[0].held_out.clips == 3
    assert verdict.word == "too little"

    write_wav(clips / "clip_0.wav", hum(0.2), RATE)
    (clips / "clip_1.wav").write_text("not audio")
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no ffmpeg
    _change_wav(clips / "clip_2.wav", np.zeros_like)
    facts, verdict = _look(clips)
    assert [row.rule for row in facts.left_out] == ["cannot be prepared"] * 3
    for row, words in zip(
        facts.left_out, ("0.20 s long", "clip_1.wav: ", "is silent"), strict=True
    ):
        assert words in row.words
    assert facts.training.clips == CLIPS - 4
    assert "3 clips are left out (clip_0.wav, clip_1.wav, clip_2.wav)" in _said(verdict)
    assert verdict.status == 0

    lines = "".join(f"clip_{i}.wav\t☃\n" for i in range(CLIPS))
    (clips / "transcripts.tsv").write_text(lines, encoding="utf-8")
    facts, verdict = _look(clips)
    assert facts.training.clips == 0
    assert verdict.status == 2
    assert _run(clips).exit_code == 2


def test_what_preparing_leaves_out_is_no_end_of_checking(clips: Path) -> None:
    with (clips / "transcripts.tsv").open("a") as file:
        file.write("gone.wav\twords\n")
    (clips / "extra.wav").write_bytes((clips / "clip_0.wav").read_bytes())
    facts, verdict = _look(clips, held_out=0)
    assert facts.training.clips == CLIPS
    line, clip = facts.left_out
    assert (line.name, clip.name) == (f"transcripts.tsv line {CLIPS + 1}", "extra.wav")
    assert "lists gone.wav, which is not in the folder" in line.words
    assert "has no line in transcripts.tsv" in clip.words
    assert verdict.status == 0


def test_clipped_noisy_and_crackling_clips(clips: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(CLIPS):  # with a pause, as speech has
        _change_wav(clips / f"clip_{index}.wav", lambda wav: np.pad(wav, (0, RATE // 2)))

    def wrap(wav: np.ndarray) -> np.ndarray:
        return (wav * 1.3 / np.abs(wav).max() + 1) % 2 - 1

    _change_wav(clips / "clip_0.wav", lambda wav: np.clip(wav, -0.2, 0.2))
    _change_wav(clips / "clip_1.wav", lambda wav: wav + 0.05 * random.standard_normal(len(wav)))
    _change_wav(clips / "clip_2.wav", wrap)
    _change_wav(clips / "clip_3.wav", lambda wav: 0.02 * wav)
    _change_wav(clips / "clip_4.wav", lambda wav: wav + 0.05)
    facts, verdict = _look(clips, held_out=0)
    sound = facts.sound
    assert sound is not None
    assert sound.clipped == ("clip_0.wav",)
    assert sound.noisy == ("clip_1.wav",)
    assert sound.wrapped == ("clip_2.wav",)
    assert sound.off_level == ("clip_3.wav",)
    assert sound.offset == ("clip_4.wav",)
    for words in ("clipped (clip_0.wav)", "noisy (clip_1.wav)", "crackling", "off centre"):
        assert words in _said(verdict)


def test_the_same_twice(clips: Path) -> None:
    shutil.copy(clips / "clip_0.wav", clips / "clip_1.wav")
    shutil.copy(clips / "clip_2.wav", clips / f"clip_{CLIPS - 1}.wav")
    facts, verdict = _look(clips)
    same = {row.names: row for row in facts.duplicates if row.what == "recording"}
    assert set(same) == {("clip_0.wav", "clip_1.wav"), ("clip_2.wav", "clip_7.wav")}
    assert not same["clip_0.wav", "clip_1.wav"].same_text
    assert same["clip_2.wav", "clip_7.wav"].across
    assert "same recording with different texts" in _said(verdict)
    assert "trained on and held out" in _said(verdict)


def test_transcripts_that_do_not_fit(tmp_path: Path) -> None:
    words = [3 + index % 7 for index in range(12)]
    for index, count in enumerate(words):
        write_wav(tmp_path / f"{index:02}.wav", hum(0.36 * count), RATE)

    def look(texts: list[str]) -> tuple[VoiceFacts, Verdict]:
        lines = [f"{index:02}.wav\t{text}\n" for index, text in enumerate(texts)]
        (tmp_path / "transcripts.tsv").write_text("".join(lines))
        return _look(tmp_path, held_out=0)

    texts = ["seven " * count for count in words]
    texts[3] = "no."
    facts, verdict = look(texts)
    assert facts.rates["en"].outliers == ("03.wav",)
    assert facts.rates["en"].outside == ("03.wav",)
    assert "listen, and check the transcript" in _said(verdict)
    # All lines three clips further on: each could be slow or fast speech, together they cannot.
    facts, verdict = look(texts[3:] + texts[:3])
    assert (facts.rates["en"].correlation or 1) < LEAST_CORRELATION
    assert "do not fit the recordings" in _said(verdict)


def test_unknown_and_guessed_sounds(prepared: Path, clips: Path) -> None:
    _change_line(prepared, 0, lambda line: line.replace(" ", " UNK ", 3))
    facts, verdict = _look(prepared)
    assert (facts.phonemes.unknown, facts.phonemes.unknown_in) == (3, ("clip_0.wav",))
    assert "3 sounds unknown (UNK), in clip_0.wav" in _said(verdict)
    lines = (clips / "transcripts.tsv").read_text().splitlines()
    lines[0] = "clip_0.wav\tthe Blorptian quizzle"
    (clips / "transcripts.tsv").write_text("\n".join(lines))
    assert set(_look(clips)[0].phonemes.guessed) == {"Blorptian", "quizzle"}


def test_bandwidth_is_where_the_recording_ends() -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal(RATE).astype(np.float32) * 0.1
    spectrum = np.fft.rfft(noise)
    hertz = np.fft.rfftfreq(len(noise), 1 / RATE)
    for edge in (4000, 8000, 11025, 16000):
        wav = np.fft.irfft(np.where(hertz <= edge, spectrum, 0)).astype(np.float32)
        stored = np.trunc(wav * 32768) / 32768  # as upstream stores it
        for heard in (wav, stored.astype(np.float32)):
            assert measure_sound(heard, RATE).bandwidth_hz == pytest.approx(edge, abs=300)


def test_levels_of_known_sounds() -> None:
    time = np.arange(RATE) / RATE
    tone = (0.5 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    paused = np.concatenate([tone, 1e-4 * (-1.0) ** np.arange(RATE // 4)]).astype(np.float32)
    sound = measure_sound(paused, RATE)
    assert sound.peak == pytest.approx(0.5, abs=1e-3)
    assert sound.noise_db == pytest.approx(-80, abs=0.1)
    assert sound.range_db == pytest.approx(80 - 9.03, abs=0.1)
    assert sound.range_db > NOISY_RANGE_DB
    assert measure_sound(np.clip(hum(1.0), -0.2, 0.2), RATE).clipped > CLIPPED_SHARE
    assert measure_sound(hum(1.0), RATE).clipped < CLIPPED_SHARE
    silent = measure_sound(np.zeros(10, np.float32), RATE)
    assert (silent.clipped, silent.bandwidth_hz) == (0.0, 0.0)


def test_far_from_median() -> None:
    assert far_from_median([1.0, 9.0]) == [False, False]
    values = [10.0, 10.1, 9.9, 10.2, 9.8, 20.0, 5.0]
    assert far_from_median(values) == [False] * 5 + [True, True]
    assert far_from_median(values, below_only=True) == [False] * 6 + [True]
    assert far_from_median([10.0, 10.1, 9.9, 10.2, 9.8, 11.0], factor=1.4) == [False] * 6


def test_arpabet_is_that_of_the_dictionary() -> None:
    used = {phone for phones in dictionary().values() for phone in phones.split()}
    assert {merge_stress(phone) for phone in used} == set(ARPABET)
    assert merge_stress("a1") == "a1"  # Chinese
    assert is_english(["HH", "AH0", "L", "OW1", "!"])
    assert not is_english(["n", "i2", "h", "ao3", "!"])
