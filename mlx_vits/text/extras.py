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
    return load_extra(name, language, LANGUAGE_NAMES[language])


def load_extra(name: str, extra: str, purpose: str) -> ModuleType:
    """A module that an extra installs.

    Args:
        name: of the module.
        extra: the extra's name.
        purpose: what needs it, as a sentence begins.

    Raises:
        UserError: as for `load_package`.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"{purpose} needs the Python package {package} ({error}); "
            f"install it with `pip install 'mlx-vits[{extra}]'`."
        ) from error
