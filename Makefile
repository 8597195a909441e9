# One environment in .venv, made once from requirements.lock; every target sets up what it needs.
# lmms-eval has one of its own over it: of what it wants, this one keeps its versions.
VENV := .venv
LMMS := .venv-lmms
UV := 0.13.9
PYTHON := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export NO_ALBUMENTATIONS_UPDATE := 1
export WANDB_MODE := disabled
export TOKENIZERS_PARALLELISM := false

.PHONY: setup lmms lock demo ablations format check test quick bench gpu gpu-wheels clean help
.DEFAULT_GOAL := help

$(VENV)/installed: requirements.lock .ci/packages
	.ci/packages
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --require-hashes --python $(PYTHON) -r requirements.lock
	touch $@

setup: $(VENV)/installed ## build the environment and nothing else

$(LMMS)/installed: $(VENV)/installed lmms.lock pyproject.toml
	$(VENV)/bin/uv venv --quiet --clear --python $(PYTHON) $(LMMS)
	$(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    >$$($(LMMS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	$(VENV)/bin/uv pip install --quiet --no-deps --require-hashes --python $(LMMS)/bin/python -r lmms.lock
	$(VENV)/bin/uv pip install --quiet --no-deps --no-build-isolation --python $(LMMS)/bin/python -e .
	touch $@

lmms: $(LMMS)/installed ## lmms-eval in .venv-lmms, with the packages of .venv below its own

lock: ## after a change of requirements.txt: write both locks, all packages with their versions and hashes
	$(VENV)/bin/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	    --custom-compile-command "make lock" requirements.txt --output-file requirements.lock
	sed -n "/'win32'\|^filelock/!s/^\([a-z0-9-]*==.*\) .$$/\1/p" requirements.lock >$(LMMS).pins
	$(VENV)/bin/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	    --custom-compile-command "make lock" --extra lmms --overrides $(LMMS).pins \
	    $$(sed 's/==.*//; s/^/--no-emit-package /' $(LMMS).pins) pyproject.toml --output-file lmms.lock
	rm $(LMMS).pins

demo: $(VENV)/installed ## the whole of BLIP-2 in miniature, on CPU: data, two stages, scores, a report
	HF_HUB_OFFLINE=1 $(PYTHON) -m data_prep.miniature.demo

ablations: $(VENV)/installed ## after make demo: the paper's Figure 5 and Table 6 in miniature, with three seeds
	HF_HUB_OFFLINE=1 $(PYTHON) -m data_prep.miniature.ablations

format: $(VENV)/installed ## apply the formatting that `make check` wants
	ruff format .
	ruff check --fix .

check: $(VENV)/installed ## formatting, lint, types, shell scripts
	ruff format --check .
	ruff check .
	mypy pipeline data_prep eval tests/gpu tests/benchmarks
	shellcheck .ci/run .ci/packages slurm/chain slurm/eval_watch $(wildcard slurm/*.sbatch slurm/*.sh tests/support/*.sh)

test: $(VENV)/installed $(LMMS)/installed ## all tests but those marked gpu or large
	HF_HUB_OFFLINE=1 pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not gpu and not large" --durations=20

quick: $(VENV)/installed ## the tests of files that take less than 4 seconds, for every change
	HF_HUB_OFFLINE=1 pytest -q -n 2 --dist loadfile -m "not gpu and not large" $(addprefix --ignore=,$(file <tests/slow_files.txt))

bench: $(VENV)/installed ## speeds on CPU as ratios, each beside a named reference in the same run
	for name in training_step loader captioner download answers cider rerank exchange_bytes large_manifest; do \
	    echo "== $$name"; HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PYTHON) -m tests.benchmarks.$$name || exit 1; done

gpu: ## the checks that need a GPU, 8 minutes on one: numerics, waits, training, speeds, a page of results
	python3 -m tests.gpu.run $(GPU_FLAGS)

gpu-wheels: $(VENV)/installed ## the packages that a bare GPU machine lacks, into gpu_wheels/
	$(PYTHON) -m tests.gpu.wheels

clean: ## remove the environment and the miniature's runs
	rm -rf $(VENV) $(LMMS) runs/miniature runs/ablations

help: ## the map of all commands, a line each
	@python3 -m pipeline
