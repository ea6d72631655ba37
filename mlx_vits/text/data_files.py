"""The files of `mlx_vits/text/data`, wherever the package is installed."""

from __future__ import annotations


def read_data(file_name: str) -> bytes:
    """The content of one file; see `data/README.md` for what each holds and its licence."""
    # Imported late: it takes longer than all of this package.
    from importlib import resources

    return (resources.files("mlx_vits.text") / "data" / file_name).read_bytes()
