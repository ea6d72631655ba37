"""A preparation that was interrupted goes on, one that is repeated does again only what changed.

What comes out is judged by upstream's rules, see `tests/support/upstream_dataset.py`.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from mlx_vits.audio.files import read_speech, write_wav
from mlx_vits.checkpoints.base import Base
from mlx_vits.checkpoints.speaker import load_speaker_encoder
from mlx_vits.checkpoints.state_dict import expected_shapes
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.errors import DataError, UserError
from mlx_vits.models.speaker_encoder import ERes2NetV2, SpeakerEncoderConfig
from mlx_vits.preprocessing import features, prepare
from mlx_vits.preprocessing.prepared import DroppedClip
from mlx_vits.preprocessing.quality import judge_clip
from tests.support.bench import Bench, content, stamps, take, watch_encoder
from tests.support.goldens import values
from tests.support.recipe import make_tensor
from tests.support.tiny import RATE, TEXTS, make_base, tiny_config
from tests.support.upstream_dataset import judge, judge_length, read_rows, read_wav

WIDTH = 16  # of the tiny encoder's features


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Base:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def heard(monkeypatch: Any) -> list[str]:
    """Names of the clips whose features are computed, each by itself.

    So they are the same to the bit whatever was done before; for batches see
    `test_feature_batches.py`.
    """
    monkeypatch.setattr(features, "BATCH_SAMPLES", 1)
    return watch_encoder(monkeypatch)


@pytest.fixture
def bench(base: Base, tmp_path: Path) -> Bench:
    return Bench(tmp_path, base)


def test_an_interrupted_preparation_goes_on(base: Base, tmp_path: Path, heard: list[str]) -> None:
    """Five clips, the last held out; interrupted four times. The result is that of one go."""
    whole, parts = Bench(tmp_path / "whole", base, 5), Bench(tmp_path / "parts", base, 5)
    whole.make()
    heard.clear()
    for clips in (1, 3, 4, 5):
        parts.stop_after(clips)
        assert not parts.output.exists()
        assert heard == [f"clip_{i}.wav" for i in range(clips)]
    parts.make()
    assert heard == [f"clip_{i}.wav" for i in range(5)]
    assert not parts.partial.exists()
    assert content(parts.output) == content(whole.output)
    before = stamps(parts.output)
    parts.make()
    assert (len(heard), stamps(parts.output)) == (5, before)


def test_a_file_that_is_not_in_the_journal_does_not_count(bench: Bench, heard: list[str]) -> None:
    """Half written, or whole and of another clip: both are made again."""
    bench.stop_after(1)
    files = {place: bench.partial / place for place in ("5-wav32k", "4-cnhubert")}
    whole = (files["4-cnhubert"] / "clip_0.wav.pt").read_bytes()
    (files["4-cnhubert"] / "clip_1.wav.pt").write_bytes(whole[: len(whole) // 2])
    (files["5-wav32k"] / "clip_1.wav").write_bytes(b"RIFF")
    (files["4-cnhubert"] / "clip_2.wav.pt").write_bytes(whole)
    (files["5-wav32k"] / ".mlx_vits-0123456789abcdef.tmp").write_bytes(b"RIFF")
    bench.make()
    assert heard == ["clip_0.wav", "clip_1.wav", "clip_2.wav"]
    verdict = judge(bench.output, "v2", WIDTH)
    assert (len(verdict.kept), verdict.dropped) == (3, {})


@pytest.mark.parametrize("kept", [0, 10, -30])
def test_a_journal_that_was_cut_short(kept: int, bench: Bench, heard: list[str]) -> None:
    """Within the last line: that clip alone is made again."""
    bench.stop_after(2)
    journal = bench.partial / "journal.jsonl"
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + second[:kept])
    bench.make()
    assert heard == ["clip_0.wav", "clip_1.wav", "clip_1.wav", "clip_2.wav"]
    assert len(judge(bench.output, "v2", WIDTH).kept) == 3


def test_what_follows_a_cut_journal_counts(bench: Bench, heard: list[str]) -> None:
    bench.stop_after(1)
    journal = bench.partial / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:50])
    bench.stop_after(1)
    bench.make()
    assert heard == ["clip_0.wav", "clip_0.wav", "clip_1.wav", "clip_2.wav"]


def test_work_is_kept_where_the_folder_cannot_be_named(
    bench: Bench, heard: list[str], monkeypatch: Any
) -> None:
    def refuse(new: Path, path: Path) -> None:
        raise UserError(f"{path}: cannot be written (Permission denied); write elsewhere")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "replace_folder", refuse)
        with pytest.raises(UserError, match="Permission denied"):
            bench.make()
    bench.make()
    assert heard == ["clip_0.wav", "clip_1.wav", "clip_2.wav"]


def test_a_changed_text_leaves_the_audio(bench: Bench, heard: list[str]) -> None:
    bench.make()
    before = stamps(bench.output / "5-wav32k") | stamps(bench.output / "4-cnhubert")
    heard.clear()
    bench.tell(clip_2=TEXTS[2], clip_0="now another text", clip_1=TEXTS[1])
    bench.make()
    assert heard == []
    assert stamps(bench.output / "5-wav32k") | stamps(bench.output / "4-cnhubert") == before
    rows = read_rows(bench.output)
    assert list(rows) == ["clip_2.wav", "clip_0.wav", "clip_1.wav"]
    assert rows["clip_0.wav"][2] == "now another text"


def test_clips_changed_added_renamed_and_removed(bench: Bench, heard: list[str]) -> None:
    """All at once, and the same audio under two names is heard once."""
    bench.make()
    heard.clear()
    bench.write("clip_1.wav", take(3), text=None)
    (bench.source / "clip_2.wav").rename(bench.source / "renamed.wav")
    bench.write("new.wav", take(4), text=None)
    shutil.copy(bench.source / "new.wav", bench.source / "twin.wav")
    bench.tell(clip_0="one", clip_1="two", renamed="three", new="four", twin="five")
    bench.make(held_out=0)
    assert heard == ["clip_1.wav", "new.wav"]
    verdict = judge(bench.output, "v2", WIDTH)
    assert verdict.dropped == {}
    assert verdict.kept == ["clip_0.wav", "clip_1.wav", "new.wav", "renamed.wav", "twin.wav"]
    same = [content(bench.output)[f"4-cnhubert/{name}.wav.pt"] for name in ("new", "twin")]
    assert same[0] == same[1]


def test_held_out_clips_are_moved_not_made(bench: Bench, heard: list[str]) -> None:
    bench.make()
    heard.clear()
    for held_out in (2, 1, 0):
        bench.make(held_out=held_out)
        names = [f"clip_{i}.wav" for i in range(3)]
        for folder, expected in (
            (bench.output, names[: 3 - held_out]),
            (bench.output / "held_out", names[3 - held_out :]),
        ):
            verdict = judge(folder, "v2", WIDTH)
            assert (verdict.kept, verdict.dropped) == (expected, {})
    assert heard == []


def test_another_encoder_makes_all_again(bench: Bench, tmp_path: Path, heard: list[str]) -> None:
    """The same files under another name do not, nor do the symbols of another version."""
    bench.make()
    heard.clear()
    bench.make(base=replace(bench.base, name="renamed"))
    bench.config = tiny_config("v1")
    bench.make()
    assert heard == []
    assert judge(bench.output, "v1", WIDTH).dropped == {}
    bench.make(base=make_base(tmp_path / "other", seed=1))
    assert heard == ["clip_0.wav", "clip_1.wav", "clip_2.wav"]
    bench.stop_after(1)
    heard.clear()
    bench.make(base=make_base(tmp_path / "third", seed=2))
    assert heard == ["clip_0.wav", "clip_1.wav", "clip_2.wav"]


def test_clips_of_an_earlier_folder_are_taken_over(bench: Bench, heard: list[str]) -> None:
    bench.make(held_out=1)
    bench.output.rename(bench.source.parent / "earlier")
    heard.clear()
    bench.make(earlier=[bench.source.parent / "absent", bench.source.parent / "earlier"])
    assert heard == []
    shutil.rmtree(bench.source.parent / "earlier")
    assert len(judge(bench.output, "v2", WIDTH).kept) == 3


@pytest.mark.parametrize(
    "name",
    [
        "5-wav32k/clip_1.wav",
        "4-cnhubert/clip_0.wav.pt",
        "held_out/5-wav32k/clip_2.wav",
        "held_out/2-name2text.txt",
        "2-name2text.txt",
    ],
)
def test_files_that_were_deleted_are_made_again(name: str, bench: Bench, heard: list[str]) -> None:
    bench.make(held_out=1)
    before = content(bench.output)
    heard.clear()
    (bench.output / name).unlink()
    bench.make(held_out=1)
    assert content(bench.output) == before
    assert heard == [Path(name.removesuffix(".pt")).name] * ("clip" in name)


def test_a_damaged_manifest_does_not_stand_in_the_way(bench: Bench) -> None:
    bench.make()
    (bench.output / "mlx_vits.json").write_text("{")
    bench.make()
    assert len(judge(bench.output, "v2", WIDTH).kept) == 3


def add_bad_clips(bench: Bench) -> dict[str, str]:
    """Recordings that cannot be trained on: their names, and words of their sentences."""
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE)
    bench.write("short.wav", take(0)[: RATE // 2])
    bench.write("long.wav", np.resize(take(0), 39 * RATE))
    bench.write("silent.wav", np.zeros(2 * RATE))
    bench.write("clipped.wav", 9 * take(3))
    bench.write("noisy.wav", noise)
    bench.write("text.wav", noise)
    (bench.source / "text.wav").write_text("to be recorded")
    bench.write("snowman.wav", take(1), "☃")
    return {
        "short.wav": r"is 0\.50 s long; clips need at least 0\.66 s, so take it out or join it",
        "long.wav": r"is 39 s long; cut it into clips of 3 to 10 s \(at most 38 s\)",
        "silent.wav": "is silent; take it out or record it again",
        "clipped.wav": r"is clipped \(\d+\.\d% of it at full scale\); record it at a lower level",
        "noisy.wav": r"is too noisy \(.* \d dB above its quietest\); record it where it is quiet",
        "text.wav": "is not audio that can be read; give it as .*, install ffmpeg, or take it out",
        "snowman.wav": "",
    }


@pytest.mark.machine
def test_bad_clips_are_left_out_with_their_reasons(
    bench: Bench, heard: list[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no ffmpeg
    words = add_bad_clips(bench)
    said: list[tuple[int, int]] = []
    dropped = bench.make(held_out=0, progress=lambda done, count, _: said.append((done, count)))
    assert said == [(i, 10) for i in range(1, 11)]
    assert sorted(clip.name for clip in dropped) == sorted(words)
    for clip in dropped:
        place = re.escape(str(bench.source / clip.name))
        assert re.match(f"{place}: {words[clip.name]}", clip.reason), clip.reason
        assert "\n" not in clip.reason
    verdict = judge(bench.output, "v2", WIDTH)
    assert (verdict.kept, verdict.dropped) == ([f"clip_{i}.wav" for i in range(3)], {})
    heard.clear()
    before = stamps(bench.output)
    again = bench.make(held_out=0)
    assert [clip.name for clip in again] == list(words)  # in the transcripts' order now
    assert set(again) == set(dropped)
    assert (heard, stamps(bench.output)) == ([], before)
    bench.write("silent.wav", take(4), text=None)
    bench.make(held_out=0)
    assert [clip for clip in again if clip.name != "silent.wav"] == bench.make(held_out=0)
    assert heard == ["silent.wav"]


def test_strict_refuses_a_bad_clip(bench: Bench) -> None:
    """Also one held out; the clips done before it are not lost."""
    bench.write("silent.wav", np.zeros(2 * RATE))
    with pytest.raises(DataError, match=r"silent\.wav: is silent; take it out"):
        bench.make(held_out=2, strict=True)
    assert not bench.output.exists()
    assert [clip.name for clip in bench.make(held_out=2)] == ["silent.wav"]
    assert judge(bench.output / "held_out", "v2", WIDTH).kept == ["clip_2.wav"]


def test_strict_refuses_what_was_prepared_without_it(bench: Bench) -> None:
    bench.write("silent.wav", np.zeros(2 * RATE))
    bench.make()
    with pytest.raises(DataError, match=r"silent\.wav: is silent; take it out"):
        bench.make(strict=True)


def test_nothing_but_bad_clips(bench: Bench) -> None:
    """One sentence, and what was prepared before is kept."""
    bench.make()
    before = content(bench.output)
    for i in range(3):
        bench.write(f"clip_{i}.wav", np.zeros(2 * RATE), text=None)
    with pytest.raises(DataError, match=r"clip_0\.wav: is silent; take it out") as caught:
        bench.make()
    assert "\n" not in str(caught.value)
    assert content(bench.output) == before
    assert not bench.partial.exists()


def test_nothing_but_bad_clips_in_a_list(bench: Bench) -> None:
    for i in range(2):
        bench.write(f"clip_{i}.wav", np.zeros(2 * RATE), text=None)
    (bench.source / "transcripts.tsv").unlink()
    (bench.source / "x.list").write_text("clip_0.wav|me|EN|one\nclip_1.wav|me|EN|two\n")
    with pytest.raises(DataError, match=r"clip_0\.wav: is silent"):
        bench.make()


def test_a_list_takes_clips_out(bench: Bench) -> None:
    (bench.source / "transcripts.tsv").unlink()
    (bench.source / "x.list").write_text("clip_2.wav|me|EN|one\nin\\clip_0.wav|me|en|two\n")
    reason = "clip_1.wav: has no line in the list of transcripts"
    assert bench.make() == [DroppedClip("clip_1.wav", reason)]
    assert list(read_rows(bench.output)) == ["clip_2.wav", "clip_0.wav"]


def test_the_longest_clip_is_in_upstreams_last_bucket(tmp_path: Path) -> None:
    """To the sample: what we accept is not left out there."""
    config, quiet = tiny_config(), np.repeat(np.tile([0.1, 0.003], 80), 16000)
    noise = np.random.default_rng(0).standard_normal(len(quiet)) * quiet
    for samples in (1900 * 640 + 617, 1900 * 640 + 618):
        wav = noise[:samples].astype(np.float32)
        write_wav(tmp_path / "a.wav", wav, RATE)
        if judge_clip(wav, config.data) is None:
            assert judge_length(tmp_path / "a.wav") == "", samples


@pytest.fixture(scope="module")
def speaker_encoders(tmp_path_factory: Any) -> list[Path]:
    """Two files of one small encoder, with other weights."""
    net = ERes2NetV2(SpeakerEncoderConfig(4, 32, 2, 2, (1, 1, 1, 1)))
    rules, folder = values("speaker", "meta.json")["rules"], tmp_path_factory.mktemp("speaker")
    for seed in (1, 2):
        made = {n: make_tensor(n, shape, seed, rules) for n, shape in expected_shapes(net).items()}
        path = folder / f"{seed}.safetensors"
        write_tensors(path, {name: mx.array(tensor) for name, tensor in made.items()})
    return sorted(folder.iterdir())


@pytest.mark.parametrize("version", ["v1", "v2", "v2Pro"])
def test_upstream_takes_every_version(
    version: str, speaker_encoders: list[Path], tmp_path: Path, heard: list[str]
) -> None:
    """Clips of many lengths, forms and rates; the name stays, the content is a wav."""
    base = make_base(tmp_path / "base", version=version)
    bench = Bench(tmp_path, replace(base, speaker_encoder=speaker_encoders[0]), 1, version)
    speaker = load_speaker_encoder(speaker_encoders[0]).config.sv_dim
    if "Pro" in version:
        bench.config = tiny_config(version, sv_dim=speaker)
    texts = {}
    extras = (0, 1, 157, 158, 159, 160, 319, 320, 639) if version == "v2" else (0, 158, 159)
    for index, extra in enumerate(extras):
        name = f"{index}{('.wav', '.flac', '.ogg')[index % 3]}"
        rate = (RATE, 48000, 22050)[index // 3]
        samples = round((33 * 640 + 1280 * index + extra) * rate / RATE) + 1
        wav = np.resize(take(4), samples)
        wav[: rate // 10] *= 0.03  # a pause, or it is taken for noise
        soundfile.write(bench.source / name, wav, rate)
        texts[name] = TEXTS[index % len(TEXTS)]
    soundfile.write(bench.source / "both channels.mp3", np.stack([take(2)] * 2, axis=1), RATE)
    texts |= {"both channels.mp3": "Dr. Smith's 42 cats, and 3% more?", "clip_0.wav": "last"}
    lines = [f"{name}\t{text}\n" for name, text in texts.items()]
    (bench.source / "transcripts.tsv").write_text("".join(lines))
    assert bench.make(held_out=1) == []
    verdict = judge(bench.output, version, WIDTH, speaker)
    assert verdict == (sorted(list(texts)[:-1]), {}, "", 100)
    assert judge(bench.output / "held_out", version, WIDTH, speaker).kept == ["clip_0.wav"]
    for name in list(texts)[: len(extras)]:
        wav = read_speech(bench.source / name, RATE)
        mixed = wav / np.abs(wav).max() * np.float32(0.475 * 32768) + np.float32(16384) * wav
        stored = read_wav(bench.output / "5-wav32k" / name).astype(int)
        assert np.abs(stored - np.clip(mixed, -32768, 32767).astype(int)).max() <= 1
    heard.clear()
    bench.base = replace(bench.base, speaker_encoder=speaker_encoders[1])
    bench.make(held_out=1)
    assert len(heard) == (len(texts) if "Pro" in version else 0)
    if "Pro" in version:
        heard.clear()
        vector = bench.output / "7-sv_cn" / "0.wav.pt"
        before = vector.read_bytes()
        vector.unlink()
        bench.make(held_out=1)
        assert (heard, vector.read_bytes()) == (["0.wav"], before)
