"""mlx_vits: fine-tune a GPT-SoVITS voice with MLX, from about one minute of speech.

Example:
    >>> import mlx_vits
    >>> voice = mlx_vits.load("demo")
"""

from mlx_vits._backend import BLAS  # isort: skip  (has to come before mlx is imported)
from mlx_vits.errors import UserError
from mlx_vits.synthesis.gpt import GPT, load_gpt
from mlx_vits.synthesis.loading import load
from mlx_vits.synthesis.voice import Voice
from mlx_vits.version import __version__

__all__ = ["BLAS", "GPT", "UserError", "Voice", "__version__", "load", "load_gpt"]
