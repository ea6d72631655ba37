"""Which BLAS serves MLX on Linux."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlx_vits._backend import load_blas
from tests.support.goldens import ROOT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux needs another BLAS"
)


def _status(
    code: str = "import mlx_vits; print(mlx_vits.BLAS.name, mlx_vits.BLAS.note)", **variables: str
) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | variables,
    )
    return done.stdout.strip()


def test_it_can_be_switched_off_and_says_what_it_is() -> None:
    assert _status(MLX_VITS_BLAS="none") == "wheel MLX_VITS_BLAS=none"
    assert "cannot be opened" in _status(MLX_VITS_BLAS="/nowhere/libblas.so")


def test_coming_after_mlx_is_too_late_and_said() -> None:
    code = "import mlx.core, mlx_vits; print(mlx_vits.BLAS.name, mlx_vits.BLAS.note)"
    assert _status(code) == "wheel mlx was imported before mlx_vits"
    assert load_blas().name == "wheel"  # this process has mlx already


def test_a_fast_blas_gives_the_same_products() -> None:
    """The test environment installs one; the numbers agree with the wheel's to rounding."""
    if _status().startswith("wheel"):
        pytest.skip("neither OpenBLAS nor the package mkl is installed")
    code = (
        "import mlx_vits, mlx.core as mx\n"
        "a = mx.random.normal((200, 300), key=mx.random.key(0))\n"
        "print((a @ a.T).sum().item())"
    )
    fast, slow = float(_status(code)), float(_status(code, MLX_VITS_BLAS="none"))
    assert fast == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLX_CUDA_CONV_CACHE_SIZE", "77"),
        ("MLX_USE_CUDA_GRAPHS", "1"),
        ("MLX_MAX_OPS_PER_BUFFER", "50"),
    ],
)
def test_what_a_user_has_set_for_cuda_stays(name: str, value: str) -> None:
    code = f"import mlx_vits, os; print(os.environ['{name}'])"
    assert _status(code, **{name: value}) == value
