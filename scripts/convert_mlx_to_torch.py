"""python scripts/convert_mlx_to_torch.py [--whole] IN OUT.pth"""

from __future__ import annotations

from pathlib import Path

import typer

from mlx_vits.checkpoints.convert import mlx_to_torch
from mlx_vits.report.terminal import report_errors


@report_errors
def main(
    source: Path = typer.Argument(..., metavar="IN", help="A .safetensors, or a folder."),
    output: Path = typer.Argument(..., metavar="OUT", help="The .pth to write; .ckpt for a GPT."),
    whole: bool = typer.Option(
        False, "--whole", help="Keep precision and posterior encoder, to train from (s2G's form)."
    ),
) -> None:
    """Convert a voice, discriminator or GPT to GPT-SoVITS's file; PyTorch is not needed."""
    print(f"{output}: {mlx_to_torch(source, output, whole=whole)}")


if __name__ == "__main__":
    typer.run(main)
