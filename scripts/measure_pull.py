"""From which strength the pull toward the pretrained weights acts, measured on a prepared voice.

python scripts/measure_pull.py --prepared runs/demo/prepared [--base weights/demo/base]
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean

import mlx_vits  # noqa: F401  (chooses the BLAS before mlx is imported)
import typer

from mlx_vits.checkpoints.base import choose_base, load_discriminator, load_generator
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.regularization import relative_drift, take_anchor
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig, freeze_for

STRENGTHS = (0.0, 0.001, 1.0, 100.0, 1e3, 1e4, 1e5)


def main(
    prepared: Path = typer.Option(..., help="A run's prepared folder."),
    base: str = typer.Option("demo", help="Name or path of the base it was prepared for."),
    steps: int = typer.Option(20, help="Updates of each run."),
    batch_size: int = typer.Option(2, help="Clips."),
) -> None:
    """Prints, for each strength, how far the weights went and both gradients' norms at the end."""
    chosen = choose_base(base)
    file = chosen.read_generator()
    config = VITSTrainingConfig(steps=steps, batch_size=batch_size)
    for strength in STRENGTHS:
        model = load_generator(file, config.weight_norm)
        freeze_for(model, config.train)
        anchor = take_anchor(model)
        trainer = VITSTrainer(
            model,
            load_discriminator(chosen.discriminator, file.config),
            PreparedVoice(prepared, file.config),
            replace(config, pretrained_reg_strength=strength),
            anchor,
        )
        values = [record.values for record in trainer.steps()][-1]
        drift = mean(relative_drift(model, anchor).values())
        print(
            f"strength {strength:g}: drift {drift:.3%}, |grad reg| {values['grad_norm_reg']:.2e}, "
            f"|grad task| {values['grad_norm_task']:.2e}, loss_reg {values['loss_reg']:.2e}",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
