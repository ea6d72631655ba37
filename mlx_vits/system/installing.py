"""The command that installs what is missing, in the environment that runs."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]


def install_command(extra: str) -> str:
    """Return the command that adds an extra of this project, in backquotes.

    The project is not on PyPI: an extra is installed from its checkout, in an environment that
    `make setup` made by make, in another one by pip, or by uv where there is no pip.
    """
    here = Path.cwd().resolve()
    if Path(sys.prefix).resolve() == _CHECKOUT / ".venv":
        place = "" if here == _CHECKOUT else f"-C {shlex.quote(str(_CHECKOUT))} "
        return f"`make {place}setup EXTRAS={extra}`"
    if not (_CHECKOUT / "pyproject.toml").is_file():
        return f"`{_pip()} install '.[{extra}]'` in the checkout of mlx_vits"
    place = "." if here == _CHECKOUT else str(_CHECKOUT)
    return f"`{_pip()} install -e {shlex.quote(f'{place}[{extra}]')}`"


def package_command(requirement: str) -> str:
    """Return the command that installs a package, in backquotes."""
    return f"`{_pip()} install {shlex.quote(requirement)}`"


def _pip() -> str:
    return "pip" if importlib.util.find_spec("pip") else "uv pip"
