"""Packages that only one language needs, imported on first use."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from mlx_vits.errors import UserError
from mlx_vits.system.installing import install_command

LANGUAGE_NAMES = {
    "en": "English",
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
    "yue": "Cantonese",
}


def load_package(name: str, language: str) -> ModuleType:
    """Import a module of a package that a language's extra installs.

    Args:
        name: of the module, for example "pypinyin".
        language: code, which is also the name of the extra.

    Raises:
        UserError: it is not installed. Not a `DataError`, which would blame a single clip.
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
            f"install it with {install_command(extra)}."
        ) from error
