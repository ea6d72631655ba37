"""How GPT-SoVITS's trainer takes up a run again, without its models: a stand-in for tests.

Builds PyTorch's AdamW over tensors of the names in a resume file, in upstream's groups and order,
loads the file as `s2_train.py` does, and tells each moment by its tensor's name. Written from the
description of upstream's formats alone, with nothing of mlx_vits; PyTorch and MLX bring a BLAS
each, so a test runs it in a process of its own:

    python -m tests.support.upstream_train OUTPUT G_8.pth [D_8.pth ...]

writes `OUTPUT/G_8.npz` with `first/NAME`, `second/NAME`, `step/NAME`, and `OUTPUT/G_8.json`.

Source: GPT-SoVITS `s2_train.py`, `utils.py` (`load_checkpoint`, `save_checkpoint`,
`latest_checkpoint_path`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

BETAS = (0.8, 0.99)
EPS = 1e-9
BASE_RATE = 1e-4
TEXT_LOW_RATE = 0.4
DECAY = 0.999875
TEXT_SIDE = ("enc_p.text_embedding.", "enc_p.encoder_text.", "enc_p.mrte.")
# Entries of the state dict that are no parameters.
BUFFERS = ("_codebook.inited", "_codebook.cluster_size", "_codebook.embed", "_codebook.embed_avg")
# Frozen: never given a gradient.
FROZEN = ("ssl_proj.",)


def parameter_names(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.endswith(BUFFERS)]


def generator_groups(names: Iterable[str]) -> list[list[str]]:
    """Names by upstream's four groups: all else in the order of registration, then the text side.

    Args:
        names: of the state dict, in its own order.
    """
    found = parameter_names(names)
    return [
        [name for name in found if not name.startswith(TEXT_SIDE)],
        *([name for name in found if name.startswith(part)] for part in TEXT_SIDE),
    ]


def is_generator(names: Iterable[str]) -> bool:
    return any(name.startswith("enc_p.") for name in names)


@dataclass
class Trainer:
    """A net's parameters with their optimizer, before the first epoch or as a file left them.

    Attributes:
        state: the whole state dict; what is trained is a `Parameter`.
        groups: names by the optimizer's groups.
        epoch: that comes next.
        missing: tensors that the file lacks or has in another shape; they keep their values.
    """

    state: dict[str, torch.Tensor]
    groups: list[list[str]]
    optimizer: torch.optim.AdamW
    epoch: int = 1
    missing: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """In the order that the optimizer numbers them."""
        return [name for group in self.groups for name in group]

    def moments(self) -> dict[str, dict[str, np.ndarray]]:
        """`step`, `exp_avg` and `exp_avg_sq` of each tensor that has any, by name."""
        states = self.optimizer.state
        return {
            name: {
                key: np.asarray(torch.as_tensor(value).detach().numpy())
                for key, value in states[self.state[name]].items()
            }
            for name in self.names
            if self.state[name] in states
        }

    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def numbers(self) -> dict[str, int]:
        """The index of each tensor in a saved optimizer."""
        return {name: index for index, name in enumerate(self.names)}


def build(
    shapes: Mapping[str, Iterable[int]],
    *,
    rate: float = BASE_RATE,
    text_low_rate: float = TEXT_LOW_RATE,
    seed: int = 1234,
) -> Trainer:
    """A fresh trainer, with random tensors in the place of a model's."""
    draw = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        tensor = torch.randn(tuple(shape), generator=draw)
        is_buffer = name.endswith(BUFFERS)
        state[name] = tensor if is_buffer else torch.nn.Parameter(tensor)
    groups = generator_groups(state) if is_generator(state) else [parameter_names(state)]
    rates = [rate, *[rate * text_low_rate] * (len(groups) - 1)]
    optimizer = torch.optim.AdamW(
        [
            {"params": [state[name] for name in group], "lr": own}
            for group, own in zip(groups, rates, strict=True)
        ],
        rate,
        betas=BETAS,
        eps=EPS,
    )
    return Trainer(state, groups, optimizer)


def save(path: Path, trainer: Trainer, iteration: int, rate: float = BASE_RATE) -> None:
    """Writes a resume file as upstream's `save_checkpoint` does."""
    content = {
        "model": {name: tensor.detach() for name, tensor in trainer.state.items()},
        "iteration": iteration,
        "optimizer": trainer.optimizer.state_dict(),
        "learning_rate": rate,
    }
    torch.save(content, path)


def resume(
    path: Path, shapes: Mapping[str, Iterable[int]] | None = None, **options: Any
) -> Trainer:
    """Loads a resume file into a fresh trainer.

    Upstream opens it with `weights_only=False`; what opens with True opens with that as well.

    Args:
        path: a `G_*.pth` or `D_*.pth`.
        shapes: of the model that upstream would have built; by default the file's own.
        options: of `build`.

    Raises:
        Whatever upstream would stumble over; it then begins again at epoch 1.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    saved = content["model"]
    trainer = build(shapes or {name: t.shape for name, t in saved.items()}, **options)
    trainer.optimizer.load_state_dict(content["optimizer"])
    with torch.no_grad():
        for name, tensor in trainer.state.items():
            if name in saved and saved[name].shape == tensor.shape:
                tensor.copy_(saved[name])
            else:
                trainer.missing.append(name)
    trainer.epoch = content["iteration"] + 1
    return trainer


def start_schedule(
    trainer: Trainer, decay: float = DECAY
) -> torch.optim.lr_scheduler.ExponentialLR:
    """The scheduler as the first epoch of this process finds it: stepped once for each epoch."""
    scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, gamma=decay)
    # PyTorch warns of a scheduler that is stepped before the optimizer; upstream does just that.
    trainer.optimizer._opt_called = True  # type: ignore[attr-defined]
    for _ in range(trainer.epoch):
        scheduler.step()
    return scheduler


def update(trainer: Trainer, seed: int) -> None:
    """One step with gradients that are drawn; the frozen part gets none."""
    draw = torch.Generator().manual_seed(seed)
    for name in trainer.names:
        tensor = trainer.state[name]
        gradient = torch.randn(tensor.shape, generator=draw)
        tensor.grad = None if name.startswith(FROZEN) else gradient
    trainer.optimizer.step()


def newest(folder: Path, pattern: str) -> Path:
    """The file that upstream resumes from: by the number made of all digits of the whole path."""

    def number(path: Path) -> int:
        return int("".join(c for c in str(path) if c.isdigit()))

    return sorted(folder.glob(pattern), key=number)[-1]


def describe(path: Path, output: Path) -> None:
    """Resumes from a file, and writes what a trainer then holds, for another process to read."""
    trainer = resume(path)
    arrays: Any = {}
    for name, state in trainer.moments().items():
        arrays[f"first/{name}"] = state["exp_avg"]
        arrays[f"second/{name}"] = state["exp_avg_sq"]
        arrays[f"step/{name}"] = state["step"]
    np.savez(output / f"{path.stem}.npz", **arrays)
    summary = {
        "names": trainer.names,
        "group_sizes": [len(group) for group in trainer.groups],
        "rates": trainer.rates(),
        "epoch": trainer.epoch,
        "missing": trainer.missing,
    }
    start_schedule(trainer)
    summary["rates_of_first_epoch"] = trainer.rates()
    (output / f"{path.stem}.json").write_text(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description="Resumes as GPT-SoVITS's trainer does.")
    parser.add_argument("output", type=Path)
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    for path in options.files:
        describe(path, options.output)


if __name__ == "__main__":
    main()
