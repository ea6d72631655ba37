"""One fine-tune, from nets to verdict: its stages one after the other, and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.run import CHECKPOINTS
from mlx_vits.checkpoints.run_info import Stage as StageName
from mlx_vits.config import Config
from mlx_vits.finetune.first_words import keep_base_voice, say_new_sentence, speak_command
from mlx_vits.finetune.gpt_stage import GPTStage
from mlx_vits.finetune.nets import Nets
from mlx_vits.finetune.options import FinetuneOptions, Screen
from mlx_vits.finetune.sovits_stage import SoVITSStage
from mlx_vits.finetune.stage import Stage, StageResult
from mlx_vits.report.results import SAMPLES, VERDICT, read_seconds
from mlx_vits.report.verdict import conclude, is_better
from mlx_vits.report.writing import write_report
from mlx_vits.system.files import atomic_write, inside, sweep
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.log import BOARD


class FinetuneRun:
    """One fine-tune whose data is prepared and whose nets are loaded.

    Args:
        options: how; `output` is the run's folder.
        config: of the model.
        nets: with the base's weights; they are let go of when their stage is over.
        prepared: the prepared folder.
        voice: its clips for the SoVITS stage; None where that is not trained.
        screen: where progress is reported.
    """

    def __init__(
        self,
        options: FinetuneOptions,
        config: Config,
        nets: Nets,
        prepared: Path,
        voice: PreparedVoice | None,
        screen: Screen,
    ):
        self.options, self.config, self.screen = options, config, screen
        self.folder = options.output
        for name in (CHECKPOINTS, SAMPLES, BOARD):
            inside(self.folder, name)
        sweep(prepared)  # it may lie elsewhere, and other runs write its spectrograms
        is_tuned = options.from_scratch is None
        warns = config.is_reduced and is_tuned
        self.base_warning = _small_base_warning(options.base.name) if warns else ""
        if self.base_warning:
            screen.warn(self.base_warning)
        self._stages: list[tuple[StageName, Callable[[], Stage]]] = []
        if voice is not None:
            make = partial(SoVITSStage, options, config, nets, voice, screen)
            self._stages.append(("sovits", make))
        else:
            keep_base_voice(options, nets.generator, prepared, screen)
        if options.trains_gpt:
            make_gpt = partial(GPTStage, options, prepared, config.version, screen)
            self._stages.append(("gpt", make_gpt))

    def run(self) -> dict[str, Any]:
        """Train to the end and judge, from the folder's last checkpoints if there are any.

        Returns:
            The verdict, as written to `verdict.json`.

        Raises:
            UserError: training stopped itself, memory ran out, or a file cannot be written.
            RunInterrupted: a signal asked for it.
        """
        started = time.monotonic()
        results: list[StageResult] = []
        count = len(self._stages)
        try:
            while self._stages:
                # Taken off the list, so that the memory of one stage is free for the next.
                name, make = self._stages.pop(0)
                self.screen.stage(name, len(results) + 1, count)
                results.append(make().run())
                del make
            return self._finish(results, time.monotonic() - started)
        except KeyboardInterrupt as error:
            if not str(error):
                error.args = (f"stopped; go on with --resume {self.folder}",)
            raise

    def _finish(self, results: list[StageResult], seconds: float) -> dict[str, Any]:
        if not any(result.steps for result in results):  # it was over before
            seconds = read_seconds(self.folder) or seconds
        verdict = self._verdict(results) | {"seconds": round(seconds, 1)}
        said = say_new_sentence(self.folder, self.config.version, self.screen)
        verdict["new_sentence"] = said
        with atomic_write(self.folder / VERDICT) as file:
            file.write(json.dumps(verdict, indent=1).encode())
        report = write_report(self.folder)
        for words in (*verdict["words"], verdict["verdict"], f"Open {report}"):
            self.screen.say(words)
        if said is not None:
            self.screen.say(f"Hear it say what you like: {speak_command(self.folder)}")
        return verdict

    def _verdict(self, results: list[StageResult]) -> dict[str, Any]:
        """The content of `verdict.json`, but for time and sound."""
        findings = [finding for result in results for finding in result.findings]
        from_scratch = self.options.from_scratch is not None
        verdict: dict[str, Any] = {
            "verdict": conclude(findings, from_scratch=from_scratch),
            "words": [finding.words for finding in findings],
            "better_than_base": is_better(findings),
            "findings": {f.name: {"passed": f.passed, "words": f.words} for f in findings},
            "voice": self.options.voice,
            "base": self.options.base.name,
            "from_scratch": from_scratch,
            "base_is_reduced": self.config.is_reduced,
            "base_warning": self.base_warning,
            "version": self.config.version,
        }
        for result in results:
            verdict |= result.record
        return verdict


def _small_base_warning(base: str) -> str:
    return (
        f"THE BASE {base!r} IS A SMALL ONE, FOR TRYING: expect a rough voice. For a full-size one "
        "run `mlx-vits download v2`, or give GPT-SoVITS's own files: --pretrained s2G.pth "
        "--pretrained-d s2D.pth --content-encoder chinese-hubert-base/"
    )
