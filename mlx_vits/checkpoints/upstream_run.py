"""Read and write the resume files of GPT-SoVITS's `s2_train.py`, `G_N.pth` and `D_N.pth`.

They hold both nets and both optimizers, and count whole epochs. `mlx_vits.json` beside them holds
the rest: exact progress, seed and other options, best score, and the pretrained weights. It
identifies the two files by SHA-256, so that it is ignored once GPT-SoVITS has continued the run.

Source: GPT-SoVITS `utils.py` (`save_checkpoint`, `load_checkpoint`, `latest_checkpoint_path`),
`s2_train.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from mlx_vits.checkpoints.base import (
    check_judge,
    file_sha256,
    load_discriminator_tensors,
    load_generator,
)
from mlx_vits.checkpoints.run import Place, RunState
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import to_numpy
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.checkpoints.upstream import UpstreamFile, read_upstream
from mlx_vits.checkpoints.upstream_optimizer import (
    Moments,
    Rate,
    from_upstream,
    moments_of,
    optimizer_states,
    parameter_groups,
    to_upstream,
)
from mlx_vits.checkpoints.voice_file import VoiceFile, voice_of
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.system.files import atomic_write, make_folder, single_name
from mlx_vits.system.json_files import read_json

LATEST = 233333333333  # upstream's number when only the latest state is kept
SIDE_FILE = "mlx_vits.json"
_FORMAT = 1
_SAME_RATE = 1e-6  # repeated multiplication and a power differ in the last digits


class Nets(NamedTuple):
    """Both nets with a run's weights, in upstream's form of weight norm."""

    generator: SynthesizerTrn
    discriminator: MultiPeriodDiscriminator


class Rates(NamedTuple):
    """Learning rates before decay, and the text side's factor on the generator's."""

    lr_g: float
    lr_d: float
    text_low_lr_rate: float


@dataclass(frozen=True)
class SideFile:
    """The part of a run's state that resume files cannot hold.

    Attributes:
        place: exact progress of the run.
        info: how it was started, as in `run.json`.
    """

    place: Place
    info: RunInfo


class _SideContent(TypedDict):
    sha256: dict[str, str]
    place: Place
    run: RunInfo


@dataclass(frozen=True)
class UpstreamRun:
    """A run in GPT-SoVITS's format.

    Attributes:
        generator: configuration and weights.
        path: of the generator's file.
        iteration: epochs finished.
        trees: as in `RunState`; the learning rates in them are 0, the trainer sets them.
        rates: before decay.
        trained: names of the generator's tensors with moments; empty before the first update.
        side: None if it is missing or belongs to other files.
        notes: sentences for the user.
    """

    generator: VoiceFile
    path: Path
    iteration: int
    trees: dict[str, Any]
    rates: Rates
    trained: frozenset[str]
    side: SideFile | None
    notes: list[str]


def resume_files(folder: Path) -> tuple[Path, Path] | None:
    """Return the newest `G_N.pth` and `D_N.pth` of a folder; None if either is missing."""
    newest = []
    for net in ("G", "D"):
        numbered = [
            (int(match.group(1)), path)
            for path in folder.glob(f"{net}_*.pth")
            if (match := re.fullmatch(rf"{net}_(\d+)\.pth", path.name))
        ]
        if not numbered:
            return None
        newest.append(max(numbered)[1])
    return newest[0], newest[1]


def write_upstream_run(
    folder: Path, state: RunState, nets: Nets, rates: Rates, info: RunInfo
) -> list[str]:
    """Write both resume files, the configuration and the side file.

    Args:
        folder: created if missing; files of the same names are replaced.
        state: of the run.
        nets: with the weights of `state`, in upstream's form of weight norm.
        rates: of the run.
        info: of the run.

    Returns:
        Notes for the user, in sentences.

    Raises:
        UserError: a file cannot be written.
    """
    make_folder(folder)
    config, place = nets.generator.config, state.place
    iteration = place.finished_epochs
    try:
        moments = {
            "G": moments_of(nets.generator, state.trees["optimizer_g"]["states"]),
            "D": moments_of(nets.discriminator, [state.trees["optimizer_d"]]),
        }
    except (ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{folder}: the run's optimizers do not fit its nets ({error}); start the run again"
        ) from error
    slow = rates.lr_g * rates.text_low_lr_rate
    groups = {
        "G": [_rate(initial, config, iteration) for initial in (rates.lr_g, slow, slow, slow)],
        "D": [_rate(rates.lr_d, config, iteration)],
    }
    digests = {}
    for net, model in (("G", nets.generator), ("D", nets.discriminator)):
        path = folder / f"{net}_{LATEST}.pth"
        content = {
            "model": {name: to_numpy(array) for name, array in state_of(model).items()},
            "iteration": iteration,
            "optimizer": to_upstream(model, moments[net], groups[net], config.train),
            "learning_rate": rates.lr_g if net == "G" else rates.lr_d,
        }
        write_torch_archive(path, content)
        digests[path.name] = file_sha256(path)
    with atomic_write(folder / "config.json") as file:
        file.write(json.dumps(config.to_dict(), indent=1).encode())
    side = {"format": _FORMAT, "sha256": digests, "place": asdict(place), "run": asdict(info)}
    with atomic_write(folder / SIDE_FILE) as file:
        file.write(json.dumps(side, indent=1).encode())
    if place.epoch > iteration and place.batch:
        return [
            f"GPT-SoVITS counts whole epochs: it will begin epoch {place.epoch} again, of which "
            f"{place.batch} batches are done; mlx_vits goes on exactly."
        ]
    return []


def _rate(initial: float, config: Config, epochs: int) -> Rate:
    """Apply the decay epoch by epoch, with the rounding of upstream's scheduler."""
    now = initial
    for _ in range(epochs):
        now *= config.train.lr_decay
    return Rate(now, initial)


def read_upstream_run(folder: Path) -> UpstreamRun:
    """Read the newest resume files of a folder.

    Raises:
        CheckpointError: one is missing or damaged, or the two do not belong together.
    """
    paths = resume_files(folder)
    if paths is None:
        raise CheckpointError(f"{folder}: holds no G_*.pth with a D_*.pth; check the path")
    generator, discriminator = (_read_resume(path) for path in paths)
    if generator.iteration != discriminator.iteration:
        raise CheckpointError(
            f"{paths[0]}: is of epoch {generator.iteration}, but {paths[1].name} of epoch "
            f"{discriminator.iteration}; take the later one away"
        )
    voice = voice_of(generator)
    judge = load_discriminator_tensors(discriminator.tensors, paths[1])
    check_judge(judge, voice.config, paths[1])
    nets = Nets(load_generator(voice), judge)
    optimizer_g = from_upstream(nets.generator, generator.optimizer, paths[0])
    optimizer_d = from_upstream(nets.discriminator, discriminator.optimizer, paths[1])
    base, *text_side = parameter_groups(nets.generator)
    slow = [name for names in text_side for name in names]
    trees = {
        "generator": nets.generator.parameters(),
        "discriminator": nets.discriminator.parameters(),
        "optimizer_g": {
            "states": optimizer_states(nets.generator, optimizer_g.moments, [slow, base])
        },
        "optimizer_d": _only(nets.discriminator, optimizer_d.moments),
    }
    side, notes = _read_side(folder, paths)
    lr_g, lr_d = (
        _undecayed(rates[0], file, voice.config)
        for rates, file in ((optimizer_g.rates, generator), (optimizer_d.rates, discriminator))
    )
    text_rate = optimizer_g.rates[1] / optimizer_g.rates[0] if optimizer_g.rates[0] else 0.0
    trained = frozenset(optimizer_g.moments.first)
    rates = Rates(lr_g, lr_d, round(text_rate, 6))
    return UpstreamRun(voice, paths[0], generator.iteration, trees, rates, trained, side, notes)


def _only(model: MultiPeriodDiscriminator, moments: Moments) -> dict[str, Any]:
    return optimizer_states(model, moments, parameter_groups(model))[0]


def _read_resume(path: Path) -> UpstreamFile:
    file = read_upstream(path)
    wanted = "generator" if path.name.startswith("G") else "discriminator"
    if file.form != "resume" or file.net != wanted:
        raise CheckpointError(
            f"{path}: is no resume file of a {wanted} (model, iteration, optimizer, learning_rate);"
            " take it away"
        )
    return file


def _undecayed(rate: float, file: UpstreamFile, config: Config) -> float:
    """Return the rate that, decayed once per finished epoch, gives the file's current rate.

    That is `learning_rate`, unless GPT-SoVITS has resumed the run, after which it decays more often
    than once an epoch; then the rate is derived from the current one.
    """
    decay = config.train.lr_decay**file.iteration
    if abs(file.learning_rate * decay - rate) <= _SAME_RATE * rate:
        return file.learning_rate
    return rate / decay


def _read_side(folder: Path, paths: tuple[Path, Path]) -> tuple[SideFile | None, list[str]]:
    path = folder / SIDE_FILE
    if not path.is_file():
        return None, [
            f"There is no {SIDE_FILE} beside these files, as GPT-SoVITS writes none: the place "
            "within an epoch, the seed, the best score and the pretrained weights are not known; "
            "the run goes on at the beginning of an epoch, with an order of clips of its own."
        ]
    cure = "take it away to go on without it"
    content = read_json(path, _SideContent, error=CheckpointError, cure=cure)
    single_name(content["run"].voice, f"{path}: voice", CheckpointError)
    if any(content["sha256"].get(file.name) != file_sha256(file) for file in paths):
        return None, [
            f"{path} belongs to other files than {paths[0].name} and {paths[1].name}, which "
            "GPT-SoVITS has trained since: the run goes on at the beginning of an epoch, with an "
            "order of clips of its own."
        ]
    return SideFile(content["place"], content["run"]), []
