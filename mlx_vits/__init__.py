"""mlx_vits: fine-tune a GPT-SoVITS voice with MLX."""

from mlx_vits._backend import BLAS  # isort: skip  (has to come before mlx is imported)
from mlx_vits.version import __version__

__all__ = ["BLAS", "__version__"]
