# Two commands matter: `make demo` and `make test`. Each installs what it needs into .venv and says what it does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two workers, one of which has all that needs Ray; torch gets one core in each. runs/TARGET.xml holds every test's duration.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --junitxml runs/$@.xml
# Some two hundred processes of tests and Ray's workers import the project: they read it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo play test test-rest test-all soak check peers lock clean weights-corpus weights-codec weights-checkpoint weights-student

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/backline demo

# The page in the browser, with the weights that ship and an example vocal.
play: $(STAMP)
	$(BIN)/backline serve --open

# Minutes: units, parity with independent implementations, and every capability once.
test: $(STAMP)
	$(PYTEST) -m "not soak" tests/smoke tests/unit tests/parity

# Everything else that needs no GPU and at most minutes, and the properties of `make test` on all their examples.
test-rest: $(STAMP)
	BACKLINE_EXAMPLES=full $(PYTEST) -m "not soak and (integration or hypothesis)" tests/integration tests/unit tests/parity

test-all: test test-rest

# What takes longer: run it when its subject changes (infra/benchmarks/service/soak.md has the figures).
soak: $(STAMP)
	$(BIN)/python -m pytest -m soak tests/integration tests/parity

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_import_direction.py

# Backline beside MusicGen and Stable Audio; what they need lies apart from what users install.
peers: $(VENV)/peers/.installed
	PYTHONPATH=$(VENV)/peers $(BIN)/python infra/benchmarks/model/peers.py $(ARGS)

$(VENV)/peers/.installed: infra/benchmarks/model/peers.lock $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --require-hashes --no-deps --target $(VENV)/peers -r $<
	@touch $@

# WORLD, for --voice syllables:FOLDER: it is compiled, so it lies apart from what everyone installs.
$(VENV)/.vocoder: $(STAMP)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python "pyworld==0.3.5"
	@touch $@

# The weights that ship, one command a part; each goes on where it stopped (figures: model/weights/README.md; on a GPU: infra/benchmarks/gpu-todo.md).
WEIGHTS ?= runs/weights
WORKERS ?= 2
SONGS ?= 1200
CODEC ?= embedded
# What plays and who sings: named, so that every machine makes the same songs.
BANKS ?= --bank numpy
VOICES ?= --voice numpy
CODEC_SONGS ?= 90
CODEC_TRAINING ?= --steps 5300
ADVERSARIAL_TRAINING ?= --max-minutes 26
TRAINING ?= --preset paper --batch-size 8 --crop-frames 512 --precision bf16 --learning-rate 1e-3 --warmup-steps 200 --ema-decay 0.998 \
	--steps 30000 --validate-every 500 --max-minutes 70 --anneal-by-time
DISTILLATION ?= --batch-size 8 --crop-frames 256 --precision bf16 --steps 20000 --max-minutes 22
# A training on few cores is a thread of its own; on a GPU it makes no difference.
ALONE := OMP_NUM_THREADS=1

weights-corpus: $(STAMP)
	$(ALONE) $(BIN)/python -m pipelines demo-latents --out $(WEIGHTS)/latents --songs $(SONGS) --seed 2000 --workers $(WORKERS) --codec $(CODEC) $(BANKS) $(VOICES)

weights-codec: $(STAMP)
	$(ALONE) $(BIN)/python -m pipelines corpus --out $(WEIGHTS)/codec-songs --songs $(CODEC_SONGS) --seed 1000 --duration-s 44 --workers $(WORKERS) $(BANKS) $(VOICES)
	$(BIN)/python -m training codec --corpus $(WEIGHTS)/codec-songs --out $(WEIGHTS)/codec --resume $(CODEC_TRAINING)
	$(BIN)/python -m training codec-adversarial --corpus $(WEIGHTS)/codec-songs --init $(WEIGHTS)/codec/codec --out $(WEIGHTS)/codec-adversarial \
		--resume $(ADVERSARIAL_TRAINING)

weights-checkpoint: $(STAMP)
	$(ALONE) $(BIN)/python -m training train --data $(WEIGHTS)/latents --out $(WEIGHTS)/run --workers 0 --samples 0 --resume $(TRAINING)

weights-student: $(STAMP)
	$(ALONE) $(BIN)/python -m training distil --teacher $(WEIGHTS)/run --data $(WEIGHTS)/latents --out $(WEIGHTS)/students --resume $(DISTILLATION)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; ok = (3, 11) <= v < (3, 14); sys.exit(0 if ok else "backline needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.11" % v)'
	@echo "backline: installing the locked packages into $(VENV) (5.7 GB; about a minute on a fast network)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	@# Compiled now: some two hundred processes of tests and Ray workers begin by importing them.
	@$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# Versions and hashes, no addresses.
lock:
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet -o requirements.lock

clean:
	rm -rf $(VENV) runs
