"""Fine-tuning from beginning to end.

| module | what |
| --- | --- |
| `data.py` | where a voice's data is; recordings become clips on the way |
| `options.py` | the options of a fine-tune |
| `nets.py` | the pretrained nets of a base |
| `starting.py`, `resuming.py` | a new run, and one that goes on |
| `takeover.py`, `handover.py` | runs from and to GPT-SoVITS's own trainer |
| `run.py` | one fine-tune, from nets to verdict: its stages one after the other |
| `stage.py` | what stages share: steps, scores, saving, logs |
| `sovits_stage.py`, `judging.py` | SoVITS, and how the voice sounds on the way and at the end |
| `gpt_stage.py`, `gpt_judging.py` | the GPT, and how well it foretells how the voice speaks |
| `first_words.py` | what a run speaks from, and a first new sentence |
"""

from mlx_vits.finetune.options import FinetuneOptions, Screen
from mlx_vits.finetune.resuming import resume
from mlx_vits.finetune.starting import start, take_over

__all__ = ["FinetuneOptions", "Screen", "resume", "start", "take_over"]
