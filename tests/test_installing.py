"""Cures that install something name a command that works in the environment that runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlx_vits.system import installing
from mlx_vits.system.installing import install_command, package_command


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("")
    monkeypatch.setattr(installing, "_CHECKOUT", folder)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(folder)
    return folder


def test_in_the_environment_that_make_made(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(checkout / ".venv"))
    assert install_command("asr") == "`make setup EXTRAS=asr`"
    monkeypatch.chdir(checkout.parent)
    assert install_command("asr") == f"`make -C '{checkout}' setup EXTRAS=asr`"


def test_in_an_environment_of_ones_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install_command("zh") == "`pip install -e '.[zh]'`"
    monkeypatch.chdir(checkout.parent)
    assert install_command("zh") == f"`pip install -e '{checkout}[zh]'`"
    monkeypatch.setattr(installing.importlib.util, "find_spec", lambda name: None)
    assert install_command("zh") == f"`uv pip install -e '{checkout}[zh]'`"
    assert package_command("torch>=2") == "`uv pip install 'torch>=2'`"


def test_installed_without_its_checkout(checkout: Path) -> None:
    (checkout / "pyproject.toml").unlink()
    assert install_command("ko") == "`pip install '.[ko]'` in the checkout of mlx_vits"
