"""Seconds, memory and rates of a step and of synthesis, beside PyTorch's where asked for.

Every repetition measures each part once, ours and PyTorch's in turn, so that whatever else the
machine does falls on all of them; medians are kept. The first repetitions are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_vits.accel.compilation import compiles_step
from mlx_vits.errors import UserError
from mlx_vits.tools.bench.kernels import count_kernels
from mlx_vits.tools.bench.machine import (
    describe_machine,
    device_kind,
    measure_ceiling,
    uses_tf32,
)
from mlx_vits.tools.bench.operations import count_operations
from mlx_vits.tools.bench.work import StepParts, Work
from mlx_vits.training.precision import compute_type

PARTS = ("forward_g", "step_d", "step_g", "step", "synthesis")
Say = Callable[[str], None]


class TorchTwin:
    """PyTorch's twin of one work, in a process of its own.

    Raises:
        UserError: PyTorch is not installed, or its process failed.
    """

    def __init__(self, work: Work):
        if find_spec("torch") is None:
            raise UserError("--compare torch needs PyTorch: pip install 'mlx-vits[torch]'")
        command = [sys.executable, "-m", "mlx_vits.tools.bench.torch_twin"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        asked = work.to_dict() | {"device": device_kind(), "tf32": uses_tf32()}
        self.facts = self._ask(json.dumps(asked))

    def measure(self) -> dict[str, float]:
        """Seconds of one step, its parts and one synthesis, and the peak in bytes so far."""
        return self._ask("step") | self._ask("synthesis")

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError("--compare torch: PyTorch's process failed; its message is above")
        return json.loads(answer)


def measure_all(
    works: Sequence[Work],
    *,
    repetitions: int,
    warm_up: int = 1,
    compiled: bool | None = None,
    precision: str = "auto",
    compare: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measures each work in turn.

    Args:
        repetitions: counted ones.
        warm_up: repetitions before them.
        compiled: whether the step is; None leaves it to the device, as training does.
        precision: of the step, as `--precision`.
        compare: whether PyTorch's twin runs along, in fp32.
        say: told what is being measured.

    Returns:
        What the JSON holds: `machine`, `ceiling` (operations a second) and `results`, each a work,
        `mlx` and where compared `torch` with `ratios`; seconds by part, `peak_bytes`, `rates`;
        `kernels` by part, as `count_kernels` has them.
    """
    compiled = compiles_step(compiled)
    say("matrix product, for the ceiling")
    compute = compute_type(precision)
    report: dict[str, Any] = {"machine": describe_machine(), "ceiling": measure_ceiling(compute)}
    report |= {"compiled": compiled, "precision": precision}
    report |= {"repetitions": repetitions, "warm_up": warm_up, "results": []}
    counts = range(-warm_up, repetitions)
    for work in works:
        say(f"{work.version}, batch {work.batch_size}, clips of {work.seconds:.2f} s")
        report["results"].append(_measure(work, counts, compiled, compare, compute))
        mx.clear_cache()
    return report


def _measure(
    work: Work, counts: range, compiled: bool, compare: bool, compute: mx.Dtype
) -> dict[str, Any]:
    twin = TorchTwin(work) if compare else None
    try:
        mx.reset_peak_memory()
        parts = StepParts(work, compiled=compiled, compute=compute)
        kernels = {part: graph._asdict() for part, graph in count_kernels(parts).items()}
        ours: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for count in counts:
            found = _measure_parts(parts)
            told = twin.measure() if twin else {}
            if count >= 0:
                ours.append(found)
                theirs.append(told)
    finally:
        if twin:
            twin.close()
    operations = count_operations(work)._asdict()
    seconds = {part: median(found[part] for found in ours) for part in PARTS}
    result: dict[str, Any] = {
        "work": work.to_dict(),
        "clip_seconds": work.seconds,
        "operations": operations,
        "kernels": kernels,
        "mlx": {
            "seconds": seconds,
            "audio_seconds_per_second": _speeds(work, seconds),
            "rates": {part: operations[part] / seconds[part] for part in PARTS},
            "peak_bytes": mx.get_peak_memory(),
        },
    }
    if twin:
        medians = {part: median(told[part] for told in theirs) for part in PARTS}
        result["torch"] = twin.facts | {
            "seconds": medians,
            "audio_seconds_per_second": _speeds(work, medians),
            "peak_bytes": theirs[-1]["peak_bytes"],
        }
        pairs = list(zip(ours, theirs, strict=True))
        result["ratios"] = {part: median(a[part] / b[part] for a, b in pairs) for part in PARTS}
    return result


def _speeds(work: Work, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of clips trained on, and of speech made, in a second."""
    trained = work.batch_size * work.seconds / seconds["step"]
    return {"step": trained, "synthesis": work.seconds / seconds["synthesis"]}


def _measure_parts(parts: StepParts) -> dict[str, float]:
    found = {
        "step": _time(parts.step),
        "forward_g": _time(parts.forward_g),
        "step_d": _time(parts.step_d),
        "synthesis": _time(parts.synthesize),
    }
    # Not a function of its own: the generator's gradients go through what came before.
    rest = found["step"] - found["forward_g"] - found["step_d"]
    return found | {"step_g": max(rest, 1e-9)}


def _time(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
