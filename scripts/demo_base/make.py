"""Make the demo's base from recordings; README.md in this folder says how.

python scripts/demo_base/make.py clips WORK --speech SPEECH
python scripts/demo_base/make.py prepare WORK --jobs 16
python scripts/demo_base/make.py train WORK --minutes 9
python scripts/demo_base/make.py assemble WORK BASE
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx_vits  # noqa: F401  (chooses the BLAS before mlx is imported)
import typer
from mlx_vits.audio.files import read_audio, read_seconds
from mlx_vits.checkpoints.base import find_base
from mlx_vits.checkpoints.run_info import is_run
from mlx_vits.config import Config
from mlx_vits.errors import DataError, UserError
from mlx_vits.finetune.new_base import write_base
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepare import PrepareOptions, prepare_voice
from mlx_vits.preprocessing.sources import HELD_OUT
from mlx_vits.preprocessing.spectrograms import SpectrogramStore
from mlx_vits.report.terminal import report_errors
from mlx_vits.system.files import atomic_write, make_folder

CONFIG = Path(__file__).with_name("config.json")
CODES_OF = "demo"  # the base whose content encoder and codebook are kept
UNSEEN = "bm_lewis"  # a speaker to try the base on
VOICES = ("kathleen", "kokoro")
HELD_OUT_SHARE = 20  # one text in so many
LISTENED_TO = 8  # held-out clips that are scored while training
LONGEST_SECONDS = 10.0  # the few that are longer would fill batches with one clip

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Row(NamedTuple):
    """A clip: its name in the work folder, its speaker and its text."""

    name: str
    speaker: str
    text: str


@app.command()
@report_errors
def clips(work: Path, speech: Path = typer.Option(...)) -> None:
    """Collect the clips to train on, and the few to listen to, with their texts.

    SPEECH holds `corpus/` (tars of Opus and rows.tsv), `kathleen/` and `kokoro/`.
    """
    folder = work / "clips"
    make_folder(folder)
    rows = [row for voice in VOICES for row in _of_voice(speech / voice)]
    rows += _of_corpus(speech / "corpus")
    unseen = {_letters(row.text) for row in rows if row.speaker == UNSEEN}
    apart = [row for row in rows if row.speaker != UNSEEN and is_held_out(row.text)]
    # Every so many of them, so that each source is heard.
    listened = sorted(apart)[:: max(1, len(apart) // LISTENED_TO)][:LISTENED_TO]
    trained = [
        row for row in rows if _letters(row.text) not in unseen and not is_held_out(row.text)
    ]
    if not trained:
        raise DataError(f"{speech}: holds no clip to train on; give the folder of the speech")
    wanted = {row.name: row for row in [*trained, *listened]}
    _copy(speech, folder, wanted)
    long = {name for name in wanted if read_seconds(folder / name) > LONGEST_SECONDS}
    for name in long:
        (folder / name).unlink()
    used = [row for row in wanted.values() if row.name not in long]
    _write(work / "clips.list", [f"{row.name}|{row.speaker}|EN|{row.text}\n" for row in used])
    _write(folder / HELD_OUT, [f"{row.name}\n" for row in listened if row.name not in long])
    print(f"{folder}: {len(used)} clips, {len(long)} that are too long left out")


def is_held_out(text: str) -> bool:
    """Whether a text is kept from training, whoever says it."""
    return zlib.crc32(_letters(text).encode()) % HELD_OUT_SHARE == 0


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def _of_voice(folder: Path) -> Iterator[Row]:
    """The clips of a folder with `transcripts.tsv`: file, speaker where there are several, text."""
    for fields in _table(folder / "transcripts.tsv"):
        yield Row(
            f"{folder.name}_{fields[0]}", fields[1] if fields[2:] else folder.name, fields[-1]
        )


def _of_corpus(folder: Path) -> Iterator[Row]:
    """The sentences of the corpus whose sound is kept."""
    header, *rows = _table(folder / "rows.tsv")
    for row in rows:
        fields = dict(zip(header, row, strict=True))
        if fields["audio"] != "-":
            yield Row(f"corpus_{fields['id']}.opus", fields["voice"], fields["text"])


def _table(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read; give --speech the folder of the speech"
        ) from error


def _copy(speech: Path, folder: Path, used: dict[str, Row]) -> None:
    for voice in VOICES:
        for path in sorted((speech / voice).glob("*.ogg")):
            if f"{voice}_{path.name}" in used:
                shutil.copyfile(path, folder / f"{voice}_{path.name}")
    for path in sorted((speech / "corpus").glob("audio_*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                name, content = f"corpus_{Path(member.name).name}", tar.extractfile(member)
                if name in used and content is not None:
                    (folder / name).write_bytes(content.read())


def _write(path: Path, lines: Sequence[str]) -> None:
    with atomic_write(path) as file:
        file.write("".join(lines).encode())


@app.command()
@report_errors
def prepare(work: Path, jobs: int = typer.Option(os.cpu_count() or 1, min=1)) -> None:
    """Prepare the clips in several processes of one thread each."""
    lines = (work / "clips.list").read_text(encoding="utf-8").splitlines(keepends=True)
    shards = [work / f"shard_{number}" for number in range(jobs)]
    for number, shard in enumerate(shards):
        _write(shard.with_suffix(".list"), lines[number::jobs])
    _in_parallel("shard", work, jobs)
    # All files are there already; they are found by what they were made from.
    _prepare(work, work / "prepared", work / "clips.list", None, shards)
    _in_parallel("spectrograms", work, jobs)
    for shard in shards:
        shutil.rmtree(shard)
        shard.with_suffix(".list").unlink()


def _in_parallel(command: str, work: Path, jobs: int) -> None:
    """Run a hidden command once for each part of the clips."""
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {"MLX_VITS_DEVICE": "cpu"} | dict(os.environ) | one
    begin = [sys.executable, __file__, command, str(work)]
    running = [
        subprocess.Popen([*begin, str(number), str(jobs)], env=environment)
        for number in range(jobs)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise UserError(f"{work}: a part was not prepared; run this again, it goes on from there")


@app.command(hidden=True)
@report_errors
def shard(work: Path, number: int, jobs: int) -> None:
    """Prepare one part of the clips."""
    name = f"shard_{number}"
    _prepare(work, work / name, work / f"{name}.list", 0, [work / "prepared"])


@app.command(hidden=True)
@report_errors
def spectrograms(work: Path, number: int, jobs: int) -> None:
    """Compute the spectrograms of one part of the clips, which training would do one by one."""
    folder = work / "prepared"
    store = SpectrogramStore(folder, Config.read(CONFIG).data)
    for path in sorted((folder / layout.WAV_FOLDER).iterdir())[number::jobs]:
        store.read(path, read_audio(path).wav)


def _prepare(
    work: Path, output: Path, listed: Path, held_out: int | None, earlier: Sequence[Path]
) -> None:
    base = find_base(CODES_OF)
    options = PrepareOptions(held_out=held_out, transcripts=listed, earlier=earlier)

    def show(done: int, count: int, name: str) -> None:
        if done % 500 == 0 or done == count:
            print(f"{output}: {done} of {count}", flush=True)

    config = base.read_generator().config
    prepare_voice(
        work / "clips", output, base, config, options, progress=show, drop=lambda clip: None
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@report_errors
def train(context: typer.Context, work: Path, minutes: float = typer.Option(9.0)) -> None:
    """Train from random weights for so long, or go on; more options are those of the trainer."""
    run = work / "run"
    start = ["--from-scratch", str(CONFIG), "--data-dir", str(work / "prepared"), "--voice", "base"]
    start += ["--base", CODES_OF, "--output", str(run), "--save-every", "1000"]
    options = [*(["--resume", str(run)] if is_run(run) else start), *context.args]
    process = subprocess.Popen([sys.executable, "-m", "mlx_vits.train", *options])
    try:
        raise typer.Exit(process.wait(minutes * 60))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it saves, and says how to go on
        process.wait()


@app.command()
@report_errors
def assemble(work: Path, base: Path) -> None:
    """Write the base: nets of the run, and the rest from the base that gave the codes."""
    write_base(work / "run", base)
    for path in find_base(CODES_OF).generator.glob("reference.*"):
        shutil.copyfile(path, base / path.name)
    size = sum(path.stat().st_size for path in base.rglob("*") if path.is_file())
    print(f"{base}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    app()
