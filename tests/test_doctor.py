"""`mlx-vits doctor`: the checks see a wrong gradient, and say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits import accel
from mlx_vits.tools.doctor import command, numerics
from mlx_vits.tools.doctor.numerics import FP32_TOLERANCE, Check, all_checks, compare, tolerance
from tests.support.goldens import ROOT


def test_this_machine_is_right() -> None:
    differences = compare()
    assert [one.name for one in differences] == [check.name for check in all_checks()]
    assert all(one.worst <= tolerance() for one in differences), differences


def test_every_check_has_gradients_that_are_not_zero() -> None:
    """Comparing zeros with zeros would find nothing."""
    for check in all_checks():
        arrays = check.run()
        assert len(arrays) >= 2, check.name
        for name, array in arrays.items():
            assert float(mx.max(mx.abs(array))) > 1e-3, (check.name, name)


def _off(right: Any) -> Any:
    """The same function of arrays, whose gradients are a thousandth too large."""

    def wrong(*arrays: mx.array, **options: Any) -> mx.array:
        value = right(*arrays, **options)
        return value + 0.001 * (value - mx.stop_gradient(value))

    return wrong


@pytest.mark.parametrize("kind", ["conv1d", "conv_transpose1d"])
def test_a_wrong_gradient_of_a_convolution_is_found(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    right = getattr(numerics, kind)

    def here_alone(*arrays: mx.array, **options: Any) -> mx.array:
        return (right if accel.backend() == "off" else _off(right))(*arrays, **options)

    monkeypatch.setattr(numerics, kind, here_alone)
    wrong = {one.name: one for one in compare() if one.worst > FP32_TOLERANCE}
    assert wrong
    assert all("convolution" in name or "weight norm" in name for name in wrong)
    assert all(one.array != "value" for one in wrong.values())


def _check(found: object) -> Check:
    return Check(
        "test",
        lambda: {"value": mx.array(found, dtype=mx.float32)},
        lambda: {"value": np.array([1.0, 4.0])},
    )


def test_differences_are_shares_of_the_largest_entry() -> None:
    assert compare((_check([1.0, 4.4]),))[0].worst == pytest.approx(0.1, rel=1e-5)
    assert compare((_check([1.0, 4.0]),))[0].worst == 0
    assert compare((_check([float("nan"), 4.0]),))[0].worst == float("inf")
    assert compare((_check([4.0]),))[0].worst == float("inf")


def test_an_operation_that_fails_is_a_difference() -> None:
    def fail() -> numerics.Arrays:
        raise RuntimeError("[conv] not\nimplemented")

    (one,) = compare((Check("test", fail, lambda: {"value": np.ones(1)}),))
    assert one.worst == float("inf")
    assert one.error == "[conv] not implemented"


def test_a_wrong_machine_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(numerics, "all_checks", lambda: (_check([1.0, 4.4]),))
    assert command.diagnose(for_machines=True) == command.WRONG
    page = json.loads(capsys.readouterr().out)
    assert page["right"] is False
    assert "comes out wrong" in " ".join(page["remarks"])
    assert "doctor --json" in " ".join(page["remarks"])
    assert command.diagnose(for_machines=False) == command.WRONG
    assert "WRONG" in capsys.readouterr().out


def test_the_page_of_a_right_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.diagnose(for_machines=True) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["right"] is True
    assert page["machine"]["versions"]["mlx"] == metadata.version("mlx")
    assert page["machine"]["rates"]["cpu"] > 0
    assert {one["name"] for one in page["differences"]} == {check.name for check in all_checks()}


def test_a_slow_blas_is_named() -> None:
    machine = command.examine()
    slow = machine._replace(
        device="cpu",
        blas=machine.blas._replace(name="wheel", note="no OpenBLAS and no MKL found"),
        versions={**machine.versions, "system": "Linux 6 aarch64"},
    )
    (remark,) = command._remarks(slow)
    assert "libopenblas" in remark
    assert "mkl" not in remark  # MKL exists for x86-64 alone


@pytest.mark.parametrize("wish", ["cpu", "tpu"])
def test_the_device_can_be_chosen(wish: str) -> None:
    code = "import mlx_vits, mlx.core as mx; print(mx.default_device())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"MLX_VITS_DEVICE": wish},
    )
    if wish == "cpu":
        assert "cpu" in done.stdout
    else:
        assert "MLX_VITS_DEVICE=tpu: only cpu is known" in done.stderr
