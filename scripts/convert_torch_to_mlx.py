"""python scripts/convert_torch_to_mlx.py IN.pth OUT.safetensors"""

from __future__ import annotations

from pathlib import Path

import typer

from mlx_vits.checkpoints.convert import torch_to_mlx
from mlx_vits.report.terminal import report_errors


@report_errors
def main(
    source: Path = typer.Argument(..., metavar="IN", help="A .pth or .ckpt of GPT-SoVITS."),
    output: Path = typer.Argument(..., metavar="OUT", help="A .safetensors, or a folder."),
) -> None:
    """Convert a generator, discriminator, voice or GPT of any version; PyTorch is not needed."""
    print(f"{output}: {torch_to_mlx(source, output)}")


if __name__ == "__main__":
    typer.run(main)
