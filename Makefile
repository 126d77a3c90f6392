# make demo, make test: in .venv, which they make. With PYTHON=python3 that interpreter is used as it is, with no venv.
VENV := .venv
ifdef PYTHON
RUN := $(PYTHON)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed
endif
# The first interpreter of a version that the project admits.
BASE := $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test lint types pytest coverage slow bench startup faults figures gpu-test gpu-bench gpu-figures on-gpu-bench on-gpu-figures clean

demo: $(READY)  ## Train and compare three algorithms on the embedded data set, to convergence.
	$(RUN) -m pyro_vae compare --data digits --inference aevb,analytic-kl,wake-sleep --seeds 3 \
		--epochs 200 --set training.schedule=cosine

test: lint types pytest  ## Lint, types and the default tests.

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY)
	$(RUN) -m mypy

pytest: $(READY)  # one thread for each of two workers
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

coverage: $(READY)  ## The line cover of the package by the default tests; other processes are not counted.
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --cov=pyro_vae --cov-report=term

slow: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile -m slow

bench: $(READY)  ## The benchmarks behind the README's figures; pythae and NumPyro join where they are installed.
	$(RUN) -m benchmarks.gradient_noise
	$(RUN) -m benchmarks.sandwich
	$(RUN) -m benchmarks.log_marginal
	$(RUN) -m benchmarks.swap_matrix
	$(RUN) -m benchmarks.priors
	$(RUN) -m benchmarks.counts
	$(RUN) -m benchmarks.step_time
	$(RUN) -m benchmarks.programs
	$(RUN) -m benchmarks.compare_inference

startup: $(READY)  ## CPU seconds of `import pyro_vae` and of `pyro-vae --help`.
	$(RUN) -m benchmarks.startup

faults: $(READY)  ## Kills, flipped bits, full disks, damaged and hostile files: half an hour; PYRO_VAE_FAULTS=0.1 for a tenth.
	OMP_NUM_THREADS=1 $(RUN) -m tests.faults

figures: $(READY)  ## The papers' figures and tables: hours. Stopped, it goes on; started twice, it uses two cores.
	$(RUN) -m benchmarks.aevb_figure2_study
	$(RUN) -m benchmarks.aevb_figure2
	$(RUN) -m benchmarks.aevb_figure3
	$(RUN) -m benchmarks.aevb_figures45
	$(RUN) -m benchmarks.iwae_table1
	$(RUN) -m benchmarks.published_table --write

gpu-test: $(READY)
	$(RUN) -m pytest -m gpu -rs

gpu-bench gpu-figures: $(READY)  ## Where there is no CUDA device, a line says so. Stopped, the figures go on.
	@if $(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(MAKE) --no-print-directory on-$@; else echo "$@: there is no CUDA device here; nothing was run."; fi

on-gpu-bench:
	$(RUN) -m benchmarks.log_marginal --device cuda
	$(RUN) -m benchmarks.priors --device cuda
	$(RUN) -m benchmarks.step_time --device cuda
	$(RUN) -m benchmarks.compare_inference --device cuda

on-gpu-figures:
	$(RUN) -m benchmarks.aevb_figure2 --samples 1e8 --device cuda
	$(RUN) -m benchmarks.aevb_figure3 --device cuda
	$(RUN) -m benchmarks.iwae_table1 --full --layers 1 --device cuda

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(BASE)" || { echo "Python 3.11 or later is needed; found none as python3, python3.11, ..."; exit 1; }
	test -x $(VENV)/bin/python || $(BASE) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage
