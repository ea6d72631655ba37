"""`mlx-vits speak`: files of every format, standard input, players, and what ends it early."""

from __future__ import annotations

import inspect
import os
import resource
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

import mlx_vits
from mlx_vits import speak
from mlx_vits.audio.writing import SoundFile
from mlx_vits.cli import app
from mlx_vits.errors import UserError
from mlx_vits.system.installing import install_command
from tests.support.tiny import RATE, hum
from tests.support.tiny_speech import make_speaking_base

TEXT = "Hello there. Good day to you. And so we go."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaking_base(tmp_path_factory.mktemp("speaking") / "base", most_codes=12)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(base: Path) -> Callable[..., Result]:
    def command(*arguments: Any, **options: Any) -> Result:
        words = ["speak", str(base), *map(str, arguments)]
        return CliRunner().invoke(app, words, catch_exceptions=False, **options)

    return command


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Lets no file grow beyond a size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def seconds(path: Path | str) -> float:
    return soundfile.info(path).duration


def test_bits_of_the_weights(run: Callable[..., Result], here: Path) -> None:
    refused = run("Hello.", "-o", "out.wav", "--bits", 3)
    assert (refused.exit_code, refused.output) == (1, "error: bits is 3; it has to be 8 or 4\n")
    assert run("Hello.", "-o", "out.wav", "--bits", 8).exit_code == 0
    assert seconds(here / "out.wav") > 0.4


def test_every_way_to_speak_has_the_defaults_that_help_shows() -> None:
    ways = (mlx_vits.Voice.speak, mlx_vits.Voice.stream, mlx_vits.GPT.generate, speak.main)
    shown = {"top_k": 15, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.35}
    for way in ways:
        given = inspect.signature(way).parameters
        defaults = {name: given[name].default for name in shown}
        assert {n: getattr(d, "default", d) for n, d in defaults.items()} == shown


class TestFiles:
    @pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
    def test_every_format_has_the_length_and_level(self, here: Path, suffix: str) -> None:
        wav = hum(2.013)
        with SoundFile(here / f"hum{suffix}", RATE) as file:
            for piece in np.split(wav, [1, 700, 20001, 40000]):
                file.write(piece)
        read, rate = soundfile.read(here / f"hum{suffix}", dtype="float32")
        assert len(read) / rate == pytest.approx(len(wav) / RATE, abs=0.002)
        assert np.sqrt(np.mean(read**2)) == pytest.approx(np.sqrt(np.mean(wav**2)), rel=0.02)
        assert np.abs(read).max() == pytest.approx(np.abs(wav).max(), rel=0.1)

    def test_opus_has_no_joins(self, here: Path) -> None:
        wav = hum(1.0)
        for name, pieces in (("whole", [wav]), ("cut", np.array_split(wav, 50))):
            with SoundFile(here / f"{name}.opus", RATE) as file:
                for piece in pieces:
                    file.write(piece)
        whole, cut = (soundfile.read(here / f"{name}.opus")[0] for name in ("whole", "cut"))
        assert np.array_equal(whole, cut)

    def test_a_name_that_another_program_takes_meanwhile(self, here: Path) -> None:
        path = here / "out.wav"
        first = SoundFile(path, RATE)
        first.__enter__()
        first.write(hum(0.5))
        with SoundFile(path, RATE) as second:
            second.write(hum(0.25))
        with pytest.raises(UserError, match=r"the speech is in .*out-2\.wav"):
            first.__exit__(None, None, None)
        assert seconds(path) == 0.25
        assert seconds(here / "out-2.wav") == 0.5
        assert len(list(here.iterdir())) == 2

    @pytest.mark.parametrize(
        ("output", "words"),
        [
            ("out.xyz", "choose one of .flac, .mp3, .ogg, .opus, .wav"),
            ("out", "is of no format"),
            ("folder.wav", "is a folder; write folder.wav/ for one file a line"),
            ("file.wav/out.wav", "cannot be written"),
            ("there.wav", "is there already; choose another name, or give --force"),
            ("", "say where the speech goes"),
        ],
    )
    def test_what_cannot_be_written(
        self, run: Callable[..., Result], here: Path, output: str, words: str
    ) -> None:
        (here / "folder.wav").mkdir()
        (here / "file.wav").write_bytes(b"")
        (here / "there.wav").write_bytes(b"mine")
        done = run("Hello.", "-o", output)
        assert done.exit_code == 1
        assert words in done.stderr
        assert (here / "there.wav").read_bytes() == b"mine"

    def test_a_file_a_line(self, run: Callable[..., Result], here: Path) -> None:
        (here / "text.txt").write_text("Hello.\n\n?!\n[pause 1s]\nGood day.\n", encoding="utf-16")
        assert run("--file", "text.txt", "-o", "out/").exit_code == 0
        assert sorted(path.name for path in (here / "out").iterdir()) == ["001.wav", "002.wav"]
        (here / "out" / "001.wav").unlink()
        done = run("--file", "text.txt", "-o", "out/")
        assert "002.wav: is there already" in done.stderr
        assert not (here / "out" / "001.wav").exists()

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_disk_that_fills_up_leaves_what_fitted(
        self,
        run: Callable[..., Result],
        here: Path,
        small_files: Callable[[int], None],
        stream: bool,
    ) -> None:
        small_files(100_000)
        done = run(TEXT, "-o", "out.wav", *(["--stream"] if stream else []))
        small_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        assert done.exit_code == 1
        assert "out.wav: cannot be written (File too large)" in done.stderr
        assert "out.wav holds what was spoken until then" in done.stderr
        assert 1.0 < seconds("out.wav") <= 100_000 / 2 / RATE
        assert [path.name for path in here.iterdir()] == ["out.wav"]


@pytest.mark.parametrize(
    ("number", "stream"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, False)],
)
def test_a_signal_leaves_what_was_spoken(
    run: Callable[..., Result],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    stream: bool,
) -> None:
    write = SoundFile.write

    def interrupted(file: SoundFile, wav: np.ndarray) -> None:
        write(file, wav)
        if file.samples > RATE:
            signal.raise_signal(number)

    monkeypatch.setattr(SoundFile, "write", interrupted)
    done = run(TEXT, "-o", "out.wav", *(["--stream"] if stream else []))
    assert done.exit_code == 128 + number
    length = seconds("out.wav")
    assert 1.0 < length < 3.0
    assert f"stopped; out.wav holds what was spoken until then, {length:.1f} s" in done.stderr
    assert [path.name for path in here.iterdir()] == ["out.wav"]


def test_a_long_text_is_begun_at_once(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []

    def stop(_: SoundFile, wav: np.ndarray) -> None:
        pieces.append(len(wav))
        raise KeyboardInterrupt

    monkeypatch.setattr(SoundFile, "write", stop)
    text = "The weather is fine, and we are going to the park. " * 1000
    done = run("--file", "-", "-o", "out.wav", input=text)
    assert done.exit_code == 130
    assert pieces[0] < 2 * RATE


class TestInput:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (b"", "nothing to speak"),
            (b"?!\n", "nothing to speak"),
            ("caf\xe9 noir".encode("latin-1"), "standard input: is not UTF-8 text"),
        ],
    )
    def test_what_cannot_be_read(
        self, run: Callable[..., Result], given: bytes, words: str
    ) -> None:
        done = run("--file", "-", "-o", "out.wav", input=given)
        assert done.exit_code == 1
        assert words in done.stderr

    def test_utf_16(self, run: Callable[..., Result]) -> None:
        done = run("--file", "-", "-o", "out.wav", input="Hello.".encode("utf-16"))
        assert done.exit_code == 0
        assert seconds("out.wav") > 0.5

    def test_none(self, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(speak, "sys", _Closed())
        assert "there is no standard input" in run("--file", "-", "-o", "out.wav").stderr

    def test_bytes_that_are_no_text(self, run: Callable[..., Result]) -> None:
        assert "write it in UTF-8" in run("caf\udce9", "-o", "out.wav").stderr

    def test_a_text_in_latin_1(self, run: Callable[..., Result], here: Path) -> None:
        (here / "text.txt").write_bytes("d\xe9j\xe0 vu".encode("latin-1"))
        done = run("--file", "text.txt", "-o", "out.wav")
        assert "text.txt: is not UTF-8 text (probably Windows-1252)" in done.stderr


class _Closed:
    """`sys` of a program whose standard input the shell has closed."""

    stdin = None
    stdout, stderr = sys.stdout, property(lambda _: sys.stderr)


class TestPlaying:
    @pytest.fixture(autouse=True)
    def no_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sounddevice", None)

    def program(self, here: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        (here / "bin").mkdir()
        (here / "bin" / "play").write_text(f"#!/bin/sh\n{script}\n")
        (here / "bin" / "play").chmod(0o755)
        monkeypatch.setenv("PATH", f"{here / 'bin'}:/usr/bin:/bin")

    def test_without_a_player(
        self, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, here: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(here))
        assert "install sox, or write a file with -o" in run("Hello.", "--play").stderr

    @pytest.mark.parametrize("stream", [False, True])
    def test_with_one(
        self,
        run: Callable[..., Result],
        monkeypatch: pytest.MonkeyPatch,
        here: Path,
        stream: bool,
    ) -> None:
        self.program(here, monkeypatch, "cat > played.raw")
        done = run("Hello.", "--play", "-o", "out.wav", *(["--stream"] if stream else []))
        assert done.exit_code == 0
        played = np.fromfile(here / "played.raw", "<i2")
        written, _ = soundfile.read("out.wav", dtype="int16")
        assert np.abs(played - written.astype(int)).max() <= 1

    @pytest.mark.parametrize("script", ["exit 1", "head -c 1000 > part.raw; exit 3"])
    def test_one_that_dies(
        self,
        run: Callable[..., Result],
        monkeypatch: pytest.MonkeyPatch,
        here: Path,
        script: str,
    ) -> None:
        self.program(here, monkeypatch, script)
        done = run("Hello.", "--play", "-o", "out.wav")
        assert done.exit_code == 1
        assert "play: cannot play, or has stopped" in done.stderr
        assert seconds("out.wav") > 0.5

    def test_an_interrupt_ends_it(
        self, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, here: Path
    ) -> None:
        self.program(here, monkeypatch, "echo $$ > pid; trap '' TERM; cat > played.raw; sleep 60")

        def stop(_: SoundFile, wav: np.ndarray) -> None:
            while not (here / "pid").is_file() or not (here / "pid").read_text().strip():
                pass
            raise KeyboardInterrupt

        monkeypatch.setattr(SoundFile, "write", stop)
        assert run("Hello.", "--play", "-o", "out.wav").exit_code == 130
        with pytest.raises(ProcessLookupError):
            os.kill(int((here / "pid").read_text()), 0)


def test_verification_without_its_extra(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("faster_whisper", "mlx_whisper", "whisper"):
        monkeypatch.setitem(sys.modules, name, None)
    done = run("Hello.", "-o", "out.wav", "--verify")
    assert done.exit_code == 1
    assert install_command("asr") in done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GPT", "line 1: 'GPT' has no phonemes"),
        (b"GPT JH XX", "line 1: 'XX' is no symbol of its language; write ARPAbet"),
        (b"caf\xe9 K", "save it again as UTF-8"),
        (None, "words.txt: cannot be read"),
    ],
)
def test_a_lexicon_that_cannot_be_used(
    run: Callable[..., Result], here: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (here / "words.txt").write_bytes(content)
    done = run("Hello.", "-o", "out.wav", "--lexicon", "words.txt")
    assert done.exit_code == 1
    assert words in done.stderr


class TestRuns:
    @pytest.fixture
    def older(self, here: Path) -> Path:
        """A run of a base that is no longer there, under `runs/`."""
        archive = Path(__file__).parent / "fixtures" / "older_run.tar.xz"
        with tarfile.open(archive) as tar:
            tar.extractall(here / "unpacked", filter="data")
        (found,) = (here / "unpacked").rglob("run.json")
        (here / "runs").mkdir()
        return shutil.move(found.parent, here / "runs" / "me")

    def speak(self, *words: Any) -> Result:
        return CliRunner().invoke(app, ["speak", *map(str, words)], catch_exceptions=False)

    def test_an_older_run_whose_base_is_gone(self, older: Path, here: Path) -> None:
        (here / "me").write_text("a file of the run's name")
        given = ["--reference", older / "reference.wav", "--reference-text", "Some words."]
        done = self.speak("me", "Hi.", "-o", "a.wav", *given)
        assert done.exit_code == 1
        assert "has no T2S model" in done.stderr
        assert "that of the base that the voice was made from, with --gpt" in done.stderr

    def test_a_run_that_has_not_written_its_voice(self, older: Path) -> None:
        for path in older.glob("*.safetensors"):
            path.unlink()
        done = self.speak("me", "Hello.", "-o", "out.wav")
        assert done.exit_code == 1
        assert "has not written its voice yet; finish it with --resume" in done.stderr
