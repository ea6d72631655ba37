"""Seconds, memory and rates of a step and of synthesis, beside PyTorch's where asked for.

Every repetition measures each part once, ours and PyTorch's in turn, so that whatever else the
machine does falls on all of them; medians are kept. The first repetitions are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_vits.accel.compilation import compiles_step
from mlx_vits.errors import UserError
from mlx_vits.system.installing import install_command
from mlx_vits.system.memory import is_out_of_memory
from mlx_vits.tools.bench.work import StepParts, Work
from mlx_vits.tools.machine import describe_machine, device_kind, matmul_rate, uses_tf32
from mlx_vits.training.precision import compute_type

TIMED = ("step", "forward_g", "step_d", "synthesis")
PARTS = ("forward_g", "step_d", "step_g", "step", "synthesis")
_SIDE = {"cpu": 2048, "gpu": 8192}  # of the matrices whose product is the ceiling
Say = Callable[[str], None]


class TwinProcess:
    """PyTorch's twin of one work, in a process of its own, which answers a line with a line.

    Args:
        module: of `mlx_vits.tools.bench` that serves it.
        work: as JSON holds it.

    Raises:
        UserError: PyTorch is not installed, or its process failed.
    """

    def __init__(self, module: str, work: dict[str, Any]):
        if find_spec("torch") is None:
            raise UserError(f"--compare torch needs PyTorch: {install_command('torch')}")
        command = [sys.executable, "-m", f"mlx_vits.tools.bench.{module}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        asked = work | {"device": device_kind(), "tf32": uses_tf32()}
        self.facts = self.ask(json.dumps(asked))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def ask(self, line: str) -> dict[str, Any]:
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


class TorchTwin(TwinProcess):
    """The twin of a training step and of synthesis."""

    def __init__(self, work: Work):
        super().__init__("torch_twin", work.to_dict())

    def measure(self) -> dict[str, float]:
        """Seconds of one step, its parts and one synthesis, and the peak in bytes so far."""
        return self.ask("step") | self.ask("synthesis")


def measure_all(
    works: Sequence[Work],
    *,
    repetitions: int,
    warm_up: int = 1,
    compiled: bool | None = None,
    precision: str = "auto",
    compare: bool = False,
    skip_too_large: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measure each work in turn.

    Args:
        repetitions: counted ones.
        warm_up: repetitions before them.
        compiled: whether the step is; None leaves it to the device, as training does.
        precision: of the step, as `--precision`.
        compare: whether PyTorch's twin runs along, in fp32.
        skip_too_large: leave out a work that memory has no room for.
        say: told what is being measured.

    Returns:
        What the JSON holds: `machine`, `ceiling` (operations a second) and `results`, each a work,
        `mlx` and where compared `torch` with `ratios`; seconds by part, `peak_bytes`, `rates`;
        `kernels` by part, as `StepParts.count_kernels` has them.
    """
    compute, compiled = compute_type(precision), compiles_step(compiled)
    say("matrix product, for the ceiling")
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "ceiling": matmul_rate(_SIDE[device_kind()], compute),
        "compiled": compiled,
        "precision": precision,
        "repetitions": repetitions,
        "warm_up": warm_up,
        "results": [],
    }
    for work in works:
        say(f"{work.version}, batch {work.batch_size}, clips of {work.seconds:.2f} s")
        twin = TorchTwin(work) if compare else None
        parts = None
        try:
            mx.reset_peak_memory()
            parts = StepParts(work, compiled=compiled, compute=compute)
            report["results"].append(_measure(work, parts, twin, range(-warm_up, repetitions)))
        except (RuntimeError, MemoryError) as error:
            if not (skip_too_large and is_out_of_memory(error)):
                raise
            say("no memory for it")
        finally:
            parts = None
            if twin:
                twin.close()
        mx.clear_cache()
    return report


def _measure(work: Work, parts: StepParts, twin: TorchTwin | None, counts: range) -> dict[str, Any]:
    kernels = {part: graph._asdict() for part, graph in parts.count_kernels().items()}
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for count in counts:
        found, told = _time(parts), twin.measure() if twin else {}
        if count >= 0:
            ours.append(found)
            theirs.append(told)
    peak, operations = mx.get_peak_memory(), parts.count_operations()
    seconds = _medians(ours)
    result: dict[str, Any] = {
        "work": work.to_dict(),
        "clip_seconds": work.seconds,
        "operations": operations,
        "kernels": kernels,
        "mlx": {
            "seconds": seconds,
            "audio_seconds_per_second": _speeds(work, seconds),
            "rates": {part: operations[part] / seconds[part] for part in PARTS},
            "peak_bytes": peak,
        },
    }
    if twin:
        medians = _medians(theirs)
        result["torch"] = twin.facts | {
            "seconds": medians,
            "audio_seconds_per_second": _speeds(work, medians),
            "peak_bytes": theirs[-1]["peak_bytes"],
        }
        pairs = zip(ours, theirs, strict=True)
        result["ratios"] = _medians([{part: a[part] / b[part] for part in PARTS} for a, b in pairs])
    return result


def _medians(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: median(one[part] for one in found) for part in PARTS}


def _speeds(work: Work, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of clips trained on, and of speech made, in a second."""
    trained = work.batch_size * work.seconds / seconds["step"]
    return {"step": trained, "synthesis": work.seconds / seconds["synthesis"]}


def _time(parts: StepParts) -> dict[str, float]:
    """Seconds of each part once."""
    found = time_once(parts.run, TIMED)
    # Not a function of its own: the generator's gradients go through what came before.
    rest = found["step"] - found["forward_g"] - found["step_d"]
    return found | {"step_g": max(rest, 1e-9)}


def time_once(run: Callable[[str], None], parts: Iterable[str]) -> dict[str, float]:
    """Take the seconds of `run` for each part, one after the other."""
    found = {}
    for part in parts:
        start = time.perf_counter()
        run(part)
        found[part] = time.perf_counter() - start
    return found
