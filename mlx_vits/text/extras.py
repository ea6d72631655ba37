"""Packages that one language needs and the others do not: imported when a text first asks."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from mlx_vits.errors import UserError

LANGUAGE_NAMES = {
    "en": "English",
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
    "yue": "Cantonese",
}


def load_package(name: str, language: str) -> ModuleType:
    """A module of a package that the extra of a language installs.

    Args:
        name: of the module, for example "pypinyin".
        language: the code that is also the extra's name.

    Raises:
        UserError: it is not installed; one sentence with the command that installs it. No
            `DataError`, which would be taken for the fault of one clip.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"{LANGUAGE_NAMES[language]} needs the Python package {name} ({error}); "
            f"install it with `pip install 'mlx-vits[{language}]'`."
        ) from error
