"""`config.json`: what is evaluated, and on what. Frozen before the first evaluation.

The SHA-256 of the base's files and of the clips are written once, by `freeze`; nothing is run or
scored with others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write
from mlx_vits.training.vits_trainer import VITSTrainingConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("config.json")
DEFAULT = "default"  # the cell that changes nothing
# Sets of speech that no cell makes: the held-out recordings, what the base makes of them, and the
# recordings that are trained on.
RECORDING, BASE, TRAINED = "recording", "base", "trained"
_EXPERIMENTS = {"fresh_discriminator", "unit_directions"}
_TRAINING = {field.name for field in fields(VITSTrainingConfig)} - {"seed", "steps", "epochs"}


class Minute(NamedTuple):
    """One voice's clips.

    Attributes:
        folder: within the folder of voices, with `transcripts.tsv`.
        train: file names, about a minute.
        held_out: file names.
    """

    folder: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


class Run(NamedTuple):
    """One set of speech to be made: a fine-tune, or what it is compared with.

    Attributes:
        minute: whose clips.
        cell: what is changed from the default; or `RECORDING`, `BASE` or `TRAINED`.
        seed: of the training; None where nothing is trained.
    """

    minute: str
    cell: str
    seed: int | None = None

    @property
    def name(self) -> str:
        parts = (self.minute, self.cell, self.seed)
        return ".".join(str(part) for part in parts if part is not None)


@dataclass(frozen=True)
class Settings:
    """What `config.json` says.

    Attributes:
        source: the file itself.
        base: the base's folder.
        base_sha256: of its files, by their path within it; empty until it is frozen.
        clips_sha256: of each minute's clips and transcripts; empty until frozen.
        seeds: of each cell of the ablation; other minutes are trained with the first.
        training: the options of every run that a cell does not change, the demo voice's own.
        probe_every: steps between two measurements of the loudness.
        probed: held-out clips of the ablation's minute that they are made on.
        pictured: held-out clips whose spectrograms are drawn.
        resampling_seed, resamples: of the bootstrap.
        ablation: name of the minute that all cells are run on.
        minutes: by name.
        cells: the changes of each, by name.
    """

    source: Path
    base: Path
    base_sha256: dict[str, str]
    clips_sha256: dict[str, str]
    seeds: tuple[int, ...]
    training: dict[str, Any]
    probe_every: int
    probed: tuple[str, ...]
    pictured: tuple[str, ...]
    resampling_seed: int
    resamples: int
    ablation: str
    minutes: dict[str, Minute]
    cells: dict[str, dict[str, Any]]

    def runs(self) -> list[Run]:
        """All sets of speech, in the order they are made."""
        compared = (TRAINED, RECORDING, BASE)
        planned = [Run(minute, cell) for minute in self.minutes for cell in compared]
        planned += [Run(minute, DEFAULT, self.seeds[0]) for minute in self.minutes]
        for seed in self.seeds:
            planned += [Run(self.ablation, cell, seed) for cell in self.cells]
        return list(dict.fromkeys(planned))

    def made_with(self, run: Run) -> dict[str, Any]:
        """Everything in the settings that a run's result depends on."""
        made: dict[str, Any] = {"clips": self.clips_sha256.get(run.minute)}
        if run.cell in (RECORDING, TRAINED):
            return made
        made["base"] = dict(sorted(self.base_sha256.items()))
        if run.seed is None:
            return made
        return made | {
            "seed": run.seed,
            "training": self.training,
            "probe_every": self.probe_every,
            "probed": list(self.probed),
            "changes": self.cells[run.cell],
        }


def read_settings(path: Path = CONFIG) -> Settings:
    """Reads the settings.

    Raises:
        UserError: the file is missing, is not JSON, lacks a key or has one that is unknown.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); put the shipped one back") from error
    try:
        bootstrap = values.pop("bootstrap")
        base = Path(values.pop("base"))
        settings = Settings(
            source=path,
            base=base if base.is_absolute() else ROOT / base,
            seeds=tuple(values.pop("seeds")),
            probed=tuple(values.pop("probed").split()),
            pictured=tuple(values.pop("pictured").split()),
            resampling_seed=bootstrap["seed"],
            resamples=bootstrap["resamples"],
            minutes={name: _minute(entry) for name, entry in values.pop("minutes").items()},
            **values,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: does not fit ({error}); put the shipped one back") from error
    _check(settings)
    return settings


def _minute(entry: dict[str, str]) -> Minute:
    return Minute(entry["folder"], *(tuple(entry[key].split()) for key in ("train", "held_out")))


def _check(settings: Settings) -> None:
    def fail(what: str) -> None:
        raise UserError(f"{settings.source}: {what}; mend it")

    if settings.ablation not in settings.minutes:
        fail(f"names the minute {settings.ablation!r}, which is not among its minutes")
    if DEFAULT not in settings.cells:
        fail(f"has no cell {DEFAULT!r}")
    for name, minute in settings.minutes.items():
        both = set(minute.train) & set(minute.held_out)
        if both:
            fail(f"trains {name} on {min(both)}, which it holds out as well")
    heard = set(settings.minutes[settings.ablation].held_out)
    strangers = sorted({*settings.probed, *settings.pictured} - heard)
    if strangers:
        fail(f"names {strangers[0]}, which {settings.ablation} does not hold out")
    for cell, changes in settings.cells.items():
        unknown = sorted(set(changes) - _TRAINING - _EXPERIMENTS)
        if unknown:
            fail(f"changes {unknown[0]!r} in the cell {cell!r}, which is no option")


def base_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a base, by its path within the folder.

    Raises:
        UserError: there is no such folder, or it is empty.
    """
    digests = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if not digests:
        raise UserError(f"{folder}: there is no base here; check the path in the configuration")
    return digests


def minute_digest(voices: Path, minute: Minute) -> str:
    """One SHA-256 over a minute's clips: names, bytes and transcripts.

    Raises:
        UserError: a clip or its transcript is missing.
    """
    total = hashlib.sha256()
    texts = read_texts(voices / minute.folder)
    for name in (*minute.train, *minute.held_out):
        path = voices / minute.folder / name
        if name not in texts:
            raise UserError(f"{path}: is not in transcripts.tsv; give the folder of all voices")
        total.update(f"{name}\t{file_sha256(path)}\t{texts[name]}\n".encode())
    return total.hexdigest()


def read_texts(folder: Path) -> dict[str, str]:
    """What is said in each clip: the first and the last column of `transcripts.tsv`.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / "transcripts.tsv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read; give --voices the folder of voices") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    return {row[0]: row[-1] for row in rows}


def freeze(settings: Settings, voices: Path, *, again: bool = False) -> Settings:
    """Writes the SHA-256 of the base and of the clips into the settings' file.

    Args:
        voices: the folder of voices.
        again: whether other ones that are there already are replaced.

    Raises:
        UserError: others are frozen already, or a file is missing.
    """
    base = base_digests(settings.base)
    clips = {name: minute_digest(voices, minute) for name, minute in settings.minutes.items()}
    before = (settings.base_sha256, settings.clips_sha256)
    if any(before) and before != (base, clips) and not again:
        raise UserError(
            f"{settings.source}: another base or other clips are frozen already; give --again to "
            "replace them, and evaluate anew"
        )
    values = json.loads(settings.source.read_text(encoding="utf-8"))
    values |= {"base_sha256": base, "clips_sha256": clips}
    with atomic_write(settings.source) as file:
        file.write((json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    return replace(settings, base_sha256=base, clips_sha256=clips)


def check_frozen(settings: Settings, voices: Path | None = None) -> None:
    """Checks that the base, and the clips where they are at hand, are the frozen ones.

    Raises:
        UserError: nothing is frozen yet, or a file is another; it is named.
    """
    if not settings.base_sha256 or set(settings.clips_sha256) != set(settings.minutes):
        raise UserError(
            f"{settings.source}: the base is not frozen; run `freeze` before the first evaluation"
        )
    for name in _differences(settings.base_sha256, base_digests(settings.base)):
        raise UserError(
            f"{settings.base / name}: is not what {settings.source.name} has frozen; put that "
            "back, or freeze again and evaluate anew"
        )
    for name, minute in settings.minutes.items() if voices is not None else ():
        if minute_digest(voices, minute) != settings.clips_sha256[name]:  # type: ignore[arg-type]
            raise UserError(
                f"{voices}: the clips of {name} are not what {settings.source.name} has frozen; "
                "give the voices that were"
            )


def _differences(frozen: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    return (name for name in sorted({*frozen, *found}) if frozen.get(name) != found.get(name))
