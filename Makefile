# Two commands are all that a newcomer needs: `make demo` and `make test`. Both install what they need into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
# xtuner starts `python` and `torchrun` from the PATH. One thread each where processes share cores.
RUN := PATH="$(BIN):$$PATH"
INSTALLED := $(VENV)/.installed

# The newer stack: its own transformers in front of everything of .venv.
NEWER ?= .venv-newer
NEWER_BIN := $(abspath $(NEWER))/bin

.PHONY: demo test test-slow test-newer lint benchmark ablation install clean

demo: $(INSTALLED)
	$(RUN) pallava demo $(if $(SEED),--seed $(SEED))

test: $(INSTALLED) lint
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -m "not slow and not newer" --durations=15

test-slow: $(INSTALLED) test-newer
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -m "slow and not newer" --durations=15

# Trains, converts, reopens and asks newer language models under the newer stack; some 9 minutes on two cores, which
# is more than `make test` has left.
test-newer: $(NEWER)/.installed
	PATH="$(NEWER_BIN):$$PATH" OMP_NUM_THREADS=1 PALLAVA_DEFAULT_BIN="$(BIN)" python -m pytest -m newer --durations=15 tests/smoke tests/training

lint: $(INSTALLED)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# Rewrites benchmarks/RESULTS.md, within 40 minutes on two cores that have nothing else to do.
benchmark: $(INSTALLED)
	$(RUN) python benchmarks/run.py

# Writes the table and the plot of docs/ablation.md, in some three hours on two cores that have nothing else to do. A
# second call goes on where one stopped.
ablation: $(INSTALLED)
	$(RUN) python benchmarks/ablation

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f"error: pallava needs Python 3.10 to 3.12, but $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), a few minutes and some 7 GB ..."
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(NEWER)/.installed: $(INSTALLED) constraints/newer.txt
	$(BIN)/python -m venv --without-pip $(NEWER)
	packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		echo "import site; site.addsitedir('$$($(BIN)/python -c "$$packages")')" > "$$($(NEWER_BIN)/python -c "$$packages")/shared.pth"
	$(BIN)/python -m pip --python $(NEWER_BIN)/python install --quiet --no-deps --requirement constraints/newer.txt
	for name in pallava xtuner torchrun; do \
		sed "1s|.*|#!$(NEWER_BIN)/python|" $(BIN)/$$name > $(NEWER_BIN)/$$name && chmod +x $(NEWER_BIN)/$$name; done
	touch $@

clean:
	rm -rf $(NEWER) demo ablation build work_dirs *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
