"""JSON and text files of ours as people and disks leave them: read, or refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest
from typer.testing import CliRunner

import mlx_vits
from mlx_vits.audio.files import write_wav
from mlx_vits.checkpoints.run import CHECKPOINTS, LAST
from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.cli import app
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.prepared import read_text_lines
from mlx_vits.preprocessing.recordings import slice_recordings
from mlx_vits.system.json_files import parse_json, read_json_lines
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.fuzz_json import JSON_KINDS
from tests.support.fuzzing import faults_of, fuzz
from tests.support.tiny import RATE, SEGMENT, hum, make_base, make_voice

MANIFEST = "run/prepared/mlx_vits.json"
QUICK = ("--batch-size", "2", "--segment-size", str(SEGMENT), "--steps", "1")


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(done: Any, *words: str) -> str:
    assert done.exit_code == 1, done.output
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a voice's clips and a finished run."""
    folder = tmp_path_factory.mktemp("home")
    make_base(folder / "base")
    make_voice(folder / "clips")
    paths = ("--data-dir", folder / "clips", "--base", folder / "base", "--output", folder / "run")
    done = run("finetune", *paths, *QUICK)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def finished(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


@pytest.fixture
def clips(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "clips", tmp_path / "clips"))


def train(home: Path, clips: Path, *more: str) -> Any:
    output = clips.parent / "out"
    paths = ("--data-dir", clips, "--base", home / "base", "--output", output)
    done = run("finetune", *paths, "--segment-size", SEGMENT, *more)
    assert not output.exists()
    return done


class Beside(TypedDict):
    step: int


@dataclass(frozen=True)
class Record:
    name: str
    count: int = 0
    rate: float | None = None
    kind: Literal["a", "b"] = "a"
    pairs: tuple[tuple[int, int], ...] = ()
    beside: Beside | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count is {self.count}, not from 0")


def test_values_come_in_the_types_that_are_declared() -> None:
    text = '{"name": "é", "rate": 2, "pairs": [[1, 2]], "beside": {"step": 1, "more": []}}'
    record = parse_json(text, Record, "x", error=UserError, cure="mend it")
    beside: Any = {"step": 1, "more": []}
    assert record == Record("é", rate=2.0, pairs=((1, 2),), beside=beside)
    assert type(record.rate) is float


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON"),
        (b"\xff", "is not UTF-8"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"name": ' + "[" * 50 + "]" * 50 + "}", "nested too deeply"),
        ("[]", "it is [], not a table"),
        ("{}", "lacks 'name'"),
        ('{"name": 5}', "name is 5, not text"),
        ('{"name": "x", "rest": 1}', "unknown key 'rest'"),
        ('{"name": "x", "name": "y"}', "states 'name' twice"),
        ('{"name": "a\\u0000b"}', "no text"),
        ('{"name": "\\udcff"}', "no text"),
        ('{"name": "x", "count": true}', "count is True, not a whole number"),
        ('{"name": "x", "count": 1.5}', "count is 1.5, not a whole number"),
        ('{"name": "x", "count": -1}', "count is -1, not from 0"),
        ('{"name": "x", "count": ' + "9" * 5000 + "}", "too large"),
        ('{"name": "x", "rate": NaN}', "holds nan"),
        ('{"name": "x", "rate": 1e999}', "holds inf"),
        ('{"name": "x", "rate": "1"}', "rate is '1', not a number"),
        ('{"name": "x", "kind": "c"}', "kind is 'c', not one of a, b"),
        ('{"name": "x", "pairs": [[1, 2], [1]]}', "pairs[1] is [1], not a list of 2"),
        ('{"name": "x", "beside": {"step": "1"}}', "beside.step is '1', not a whole number"),
    ],
)
def test_whatever_else_is_told_with_its_place(text: str | bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_json(text, Record, "x.json:", error=DataError, cure="mend it")
    assert str(caught.value).startswith("x.json: is damaged (")
    assert words in str(caught.value)
    assert str(caught.value).endswith("); mend it")


def test_only_a_last_line_may_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    options: Any = {"error": DataError, "cure": "mend it"}
    assert len(read_json_lines(path, Beside, **options, may_be_cut=True)) == 2
    with pytest.raises(DataError, match="line 3 is damaged"):
        read_json_lines(path, Beside, **options)
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2 is damaged"):
        read_json_lines(path, Beside, **options, may_be_cut=True)


def test_damaged_files_of_every_kind_are_refused(tmp_path: Path) -> None:
    tallies = fuzz(JSON_KINDS, tmp_path, 50, seed=1)
    assert not faults_of(tallies)
    assert all(0 < tally.loaded < tally.cases * 0.8 for tally in tallies.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", JSON_KINDS)
def test_damaged_files_at_length(tmp_path: Path, kind: str) -> None:
    assert not faults_of(fuzz({kind: JSON_KINDS[kind]}, tmp_path, 3000, seed=3))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("voice", 5, "voice is 5, not text"),
        ("options", {"training": {"batch_size": 0}}, "batch_size is 0, not a whole number from 1"),
        ("options", {"training": {"steps": "x"}}, "steps is 'x', not a whole number"),
        ("options", {"training": {}, "save_every": 0}, "save_every is 0, not a whole number"),
        ("options", {"training": {"unheard_of": 1}}, "unknown key 'unheard_of'"),
    ],
)
def test_a_damaged_run_is_refused(finished: Path, name: str, value: Any, words: str) -> None:
    path = finished / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    refused(run("finetune", "--resume", finished), f"{path}: is damaged (", words)


def test_a_run_nested_deeply_is_refused_and_still_inspected(finished: Path) -> None:
    (finished / "run.json").write_text("[" * 100_000 + "]" * 100_000)
    refused(run("finetune", "--resume", finished), "run.json: is damaged (is nested too deeply)")
    refused(run("check", finished), "run.json: is damaged (is nested too deeply)")
    with pytest.raises(UserError, match="nested too deeply"):
        mlx_vits.load(finished)
    done = run("inspect", finished)
    assert (done.exit_code, "nested too deeply" in done.stdout) == (0, True)


@pytest.mark.parametrize("place", ['{"step": -1}', '{"epoch": 0}', "[", '{"step": 1e12}', "{}{}"])
def test_a_damaged_place_is_refused(finished: Path, place: str) -> None:
    path = finished / CHECKPOINTS / LAST
    write_tensors(path, read_tensors(path).tensors, {"place": place})
    refused(run("finetune", "--resume", finished, "--steps", "2"), "the place in the run")


def test_a_damaged_log_is_not_lost_when_its_run_is_resumed(finished: Path) -> None:
    path = finished / "losses.jsonl"
    lines = '{"a": 1}\n' + path.read_text()
    path.write_text(lines)
    refused(run("finetune", "--resume", finished, "--steps", "2"), "line 1 is damaged", "'step'")
    assert path.read_text() == lines


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"batch_size": 0}', "batch_size is 0, not a whole number from 1 to 1,024"),
        ('{"batch_size": 1e12}', "batch_size is 1000000000000.0, not a whole number"),
        ('{"batch_size": 1000000000000}', "not a whole number from 1 to 1,024"),
        ('{"steps": "x"}', "steps is 'x', not a whole number"),
        ('{"lr_g": NaN}', "holds nan, which is no number"),
        ('{"train": "none"}', "train is 'none', not one of all, decoder"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ],
)
def test_suggested_options_are_checked(home: Path, clips: Path, text: str, words: str) -> None:
    (clips / "finetune.json").write_text(text)
    refused(train(home, clips), f"{clips / 'finetune.json'}: ", words, "mend it")


@pytest.mark.parametrize(
    ("flag", "value"), [("--batch-size", "1000000"), ("--lr-g", "inf"), ("--pretrained-reg", "inf")]
)
def test_options_of_the_command_line_are_checked_alike(
    home: Path, clips: Path, flag: str, value: str
) -> None:
    refused(train(home, clips, flag, value), f"{flag} is {value}, not ")


def test_options_have_ranges() -> None:
    for name, value in (("steps", 0), ("seed", -1), ("blend", 1.5), ("epochs", 2.0)):
        options: Any = {name: value}
        with pytest.raises(ValueError, match=name):
            VITSTrainingConfig(**options)


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, '{"a.wav": 5}', '{"a.wav": {"spans": 5}}'])
def test_a_recording_is_cut_again_where_slices_json_is_damaged(tmp_path: Path, text: str) -> None:
    write_wav(tmp_path / "a.wav", hum(1.5), RATE)
    made = slice_recordings([tmp_path / "a.wav"], tmp_path / "out")
    (tmp_path / "out" / "slices.json").write_text(text)
    assert slice_recordings([tmp_path / "a.wav"], tmp_path / "out") == made


@pytest.mark.parametrize("name", ["n" * 300, "../../clip_0.wav", "/etc/passwd", "a\0b", 5])
def test_a_journal_of_a_preparation_that_is_damaged_costs_work_alone(
    home: Path, clips: Path, name: Any
) -> None:
    voice = clips.parent / "voice"
    (voice / ".prepared.partial").mkdir(parents=True)
    keys = [clip["key"] for clip in json.loads((home / MANIFEST).read_text())["sources"]]
    lines = [json.dumps({"key": key, "files": [name]}) for key in keys]
    path = voice / ".prepared.partial" / "journal.jsonl"
    path.write_text("\n".join(["[" * 100_000, *lines, '{"key": "']))
    done = run("prepare", clips, "--base", home / "base", "--output", voice)
    assert done.exit_code == 0, done.output
    assert not (voice / "prepared" / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (0, "n" * 5000, "line 1: 'nnn"),
        (0, "../../x", "not a plain name"),
        (0, "a\1b", "not a plain name"),
        (1, "AA1 " * 200_000, "line 1 has 200,001 phonemes, more than a clip can hold"),
        (1, "AA1\tAA1", "line 1 does not have four columns"),
        (1, "AA1 ?? B", "'??'"),
    ],
)
def test_damaged_texts_of_a_prepared_voice(
    home: Path, finished: Path, column: int, value: str, words: str
) -> None:
    prepared = finished / "prepared"
    path = prepared / "2-name2text.txt"
    first, *others = path.read_text().split("\n")
    columns = first.split("\t")
    columns[column] = value
    path.write_text("\n".join(["\t".join(columns), *others]))
    refused(train(home, prepared), str(path), words)
    done = run("check", prepared)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_a_clip_with_more_text_than_can_be_said_is_left_out(home: Path, clips: Path) -> None:
    path = clips / "transcripts.tsv"
    lines = path.read_text().split("\n")
    lines[:2] = ["clip_0.wav\t" + "word " * 100_000, "clip_1.wav\t" + "1 " * 3000]
    path.write_text("\n".join(lines))
    done = run("prepare", clips, "--base", home / "base", "--output", clips.parent / "voice")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert "clip_0.wav: has 499,999 characters, more than a clip can hold" in words
    assert "clip_1.wav: has 9,000 phonemes, more than a clip can hold" in words
    assert "499,999 characters" in run("check", clips, "--json").stdout


def test_texts_with_the_line_ends_of_windows(home: Path, finished: Path) -> None:
    prepared = finished / "prepared"
    path = prepared / "2-name2text.txt"
    before = read_text_lines(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_text_lines(path) == before


def test_a_pipe_among_the_texts_is_not_waited_for(clips: Path) -> None:
    (clips / "transcripts.tsv").unlink()
    os.mkfifo(clips / "transcripts.list")
    refused(run("check", clips), "transcripts.list: cannot be read")


def _can_hold(folder: Path, name: bytes) -> bool:
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
        return True
    except OSError:  # a file system of UTF-8 alone
        return False


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems know UTF-8 alone")
def test_a_clip_whose_name_is_not_utf_8_is_left_out(home: Path, clips: Path) -> None:
    if not _can_hold(clips, b"caf\xe9.wav"):
        pytest.skip("the file system refuses such names")
    shutil.copy(clips / "clip_0.wav", os.fsencode(clips) + b"/caf\xe9.wav")
    done = run("prepare", clips, "--base", home / "base", "--output", clips.parent / "voice")
    assert done.exit_code == 0, done.output
    assert "not a plain name; choose one in UTF-8" in done.stdout
    refused(run("check", os.fsdecode(os.fsencode(clips) + b"\xe9")), "is not UTF-8; rename it")


def test_a_name_that_the_terminal_cannot_show_is_shown_otherwise(
    home: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips / "transcripts.tsv"
    path.write_text(path.read_text(encoding="utf-8") + "ü.wav\t今日は\n", encoding="utf-8")
    options = ("prepare", clips, "--base", home / "base", "--output", clips.parent / "voice")
    done = CliRunner(charset="ascii").invoke(app, [str(option) for option in options])
    assert done.exit_code == 0, done.output
    assert "\\xfc.wav" in done.stdout


@pytest.mark.parametrize("command", ["check", "inspect", "prepare", "finetune", "export"])
def test_paths_that_cannot_be_looked_at(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    more = {"export": ["out.safetensors"], "finetune": []}.get(command, [])
    given = ["--voice"] if command == "finetune" else []
    for path in (loop, loop / "below", "n" * 5000, "~nobody_of_this_name"):
        refused(run(command, *given, path, *more), ":", "; ")
    assert list(tmp_path.iterdir()) == [loop]


def test_links_in_circles_among_clips_and_in_a_prepared_voice(
    home: Path, clips: Path, finished: Path
) -> None:
    for folder in (clips, finished / "prepared" / "5-wav32k", finished / "prepared" / "held_out"):
        (folder / "loop.wav").symlink_to(folder / "loop.wav")
    done = run("prepare", clips, "--base", home / "base", "--output", clips.parent / "voice")
    assert done.exit_code == 0, done.output
    assert "loop.wav: is a link to nothing, not a recording" in done.stdout
    refused(run("finetune", "--resume", finished, "--steps", "2"), "is not the data that the run")
    assert run("check", finished / "prepared").exit_code in (0, 2)
