# fedasym: bare `make` prints the targets. Everything runs in .venv, which `make` sets up when needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
# Three processes on two cores: each waits much of its time for what it started. Of the slow tests two, which leave
# neither core idle: where a third starved them, Ray gave up its start. Long files begin first (tests/conftest.py).
TESTS = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0

.DEFAULT_GOAL := help
.PHONY: help setup nginx demo federation test check-slow check-ci check-deployment other-env benchmarks bench-quick check-gpu clean

help:  ## print these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fedasym needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make setup PYTHON=python3.12"; exit 1; }
	@echo "setting up .venv (once; torch and ray are large)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv \
		|| { echo "set-up failed: '$(PYTHON) -m venv' did not work, see above. On Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[all,demo,dev]' \
		|| { echo "set-up failed: see pip's message above"; exit 1; }
	@# On all cores, where pip takes one; others' tests and the models that nothing here imports are left out.
	@$(BIN)/python -m compileall -q -j 0 -x '/tests/|transformers/models/(?!auto/|bert/)' .venv/lib >/dev/null || true
	@touch $@

demo: $(STAMP)  ## federate MiniLM on movie reviews: B only, then standard LoRA, side by side
	@$(BIN)/python -m simulations demo

nginx:  ## the proxy of a deployment: installed where we may (a container's root), else said to be missing
	@PATH="$$PATH:/usr/sbin"; command -v nginx >/dev/null || { \
		test "$$(id -u)" = 0 && test ! -d /run/systemd/system && command -v apt-get >/dev/null \
		&& { apt-get install -y nginx-light || { apt-get update && apt-get install -y nginx-light; }; } >/dev/null 2>&1; } \
		|| echo "nginx is missing and is not installed from here; install Debian's nginx-light (apt-get install nginx-light)"

federation: $(STAMP) nginx  ## a server behind a proxy and three sites, deployed on this machine; compared with its simulation
	@$(BIN)/python -m simulations federation

test: $(STAMP)  ## lint, types and all tests but the slow ones, in three processes
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@# mypy beside pytest: it has one process; the third of the tests fills what others wait.
	@$(BIN)/mypy & types=$$!; \
		$(TESTS) -n 3 -m "not slow"; tests=$$?; \
		wait $$types && exit $$tests

OTHER_TORCH ?= 2.14.1
OTHER_ENV ?= .other-env
other-env: $(STAMP)  ## a second environment of another torch (gigabytes), for the test of two versions
	@$(PYTHON) -m venv --clear $(OTHER_ENV)
	@$(OTHER_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile torch==$(OTHER_TORCH)
	@# All else comes from .venv, after its own packages; Flower's commands start its own Python.
	@$(OTHER_ENV)/bin/python -c 'import pathlib, sys, sysconfig; \
		pathlib.Path(sysconfig.get_path("purelib"), "zz-venv.pth").write_text(sys.argv[1] + "\n")' \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@for tool in flower-supernode flower-superexec flwr-clientapp; do \
		sed "1s|.*|#!$(abspath $(OTHER_ENV))/bin/python|" $(BIN)/$$tool > $(OTHER_ENV)/bin/$$tool \
		&& chmod +x $(OTHER_ENV)/bin/$$tool || exit 1; done
	@$(OTHER_ENV)/bin/python -c 'import torch, transformers, flwr; print("torch", torch.__version__)'
	@echo "FEDASYM_OTHER_ENV=$(abspath $(OTHER_ENV)) $(BIN)/python -m pytest -m other_env"

check-slow: $(STAMP) nginx  ## the slow tests: killed and resumed through Flower, deployments, a whole new demo
	@$(TESTS) -n 2 -m slow

check-ci: $(STAMP) nginx  ## of the slow tests those that CI runs after make test: where nginx is there, those of a deployment too
	@marks=ci; PATH="$$PATH:/usr/sbin"; if command -v nginx >/dev/null; then marks="ci or deployed"; fi; \
	$(TESTS) -n 2 -m "$$marks"; tests=$$?; \
	test "$$marks" != ci || echo "WITHOUT nginx the tests of a deployment were NOT run: TLS, keys, proxy (make check-deployment)"; \
	exit $$tests

check-deployment: $(STAMP) nginx  ## of these, those of a deployment: TLS, keys, proxy, pinned bundle, what is killed
	@$(TESTS) -n 2 -m deployed

benchmarks: $(STAMP)  ## measure speed; raw lines go to benchmarks/results/ (an hour of rounds: python -m benchmarks.endurance)
	@for script in $(filter-out benchmarks/gpu.py benchmarks/endurance.py benchmarks/result_line.py,$(wildcard benchmarks/*.py)); do echo "$$script"; $(BIN)/python $$script --out benchmarks/results/$$(basename $$script .py).jsonl || exit 1; done

bench-quick: $(STAMP)  ## the main ratios again, in a few minutes: the mean, a step, several clients in one pass, many light clients
	@$(BIN)/python -m benchmarks.average
	@$(BIN)/python -m benchmarks.step --batches 16x32 --ranks 8 --repeats 5
	@$(BIN)/python -m benchmarks.cohort --clients 4 --repeats 3
	@$(BIN)/python -m benchmarks.scale --clients 100

check-gpu: $(STAMP)  ## the demo on this machine's GPU: bits, accuracy, memory, speed; to benchmarks/results/gpu.jsonl
	@$(BIN)/python benchmarks/gpu.py --out benchmarks/results/gpu.jsonl

clean:  ## remove runs, caches and .venv
	rm -rf .venv runs dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
