"""mlx_vits is imported before anything else brings in mlx: it chooses the BLAS."""

import mlx_vits  # noqa: F401
