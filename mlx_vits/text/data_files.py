"""Data files of `mlx_vits/text/data`, wherever the package is installed."""

from __future__ import annotations


def read_data(file_name: str) -> bytes:
    """Read a data file; contents and licences are in `data/README.md`."""
    # Imported late: it takes longer than the rest of this package.
    from importlib import resources

    return (resources.files("mlx_vits.text") / "data" / file_name).read_bytes()
