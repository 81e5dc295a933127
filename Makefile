PYTHON ?= python3
SHELL := /bin/bash
BIN := .venv/bin
READY := .venv/.stamp

.PHONY: help demo test check bench quality simulate simulate-control chaos rows clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    six example videos on this machine, into runs/demo; the same command resumes"
	@echo "make test    every test"
	@echo "make check   ruff, ruff format and pyright"
	@echo "make bench   the speed tables of README.md and docs/performance.md, some ten minutes"
	@echo "make quality   half an hour of the quality tables of docs/quality.md, into runs/"
	@echo "make simulate N=100000 SEED=0   that many schedules of the checkpoint protocol, from a seed on; FILE=x.json adds up"
	@echo "make simulate-control N=10000 SEED=0   the same of the whole control plane, in virtual time"
	@echo "make chaos N=300 SEED=0 MINUTES=30 STORE=local   random faults on real runs, or STORE=s3, or MODEL=image; the same command adds up"
	@echo "make rows N=1000 BAD=30   a manifest of that many rows, bad ones among them in ten ways, made, mended and made whole"
	@echo "make clean   remove .venv and the caches; runs/ stays"

demo: $(READY)
	$(BIN)/ti2v demo --output runs/demo
	@echo "what the oracle says of these videos (docs/quality.md):"
	@$(BIN)/python benchmarks/oracle.py runs/demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# The figures are ratios; a machine that does nothing else gives the steadiest.
bench: $(READY)
	$(BIN)/python benchmarks/engine_speed.py --device cpu --json benchmarks/results/engine_speed_cpu.json
	$(BIN)/python benchmarks/savings.py --device cpu --json benchmarks/results/savings_cpu.json
	$(BIN)/python benchmarks/flat.py --device cpu --json benchmarks/results/flat_cpu.json
	$(BIN)/python benchmarks/run_around.py --json benchmarks/results/run_around.json
	$(BIN)/python benchmarks/speed_page.py

quality: $(READY)
	$(BIN)/python benchmarks/quality_shapes.py --minutes 30 --dtype bfloat16 --slots 4 --threads 2

simulate: $(READY)
	$(BIN)/python -m tests.simulation.protocol $(or $(N),100000) $(or $(SEED),0) $(FILE)

simulate-control: $(READY)
	$(BIN)/python -m tests.simulation.control $(or $(N),10000) $(or $(SEED),0) $(FILE)

chaos: STORE ?= local
chaos: $(READY)
	$(BIN)/python -m tests.chaos.campaign --faults $(or $(N),300) --seed $(or $(SEED),0) --minutes $(or $(MINUTES),30) \
	  --store $(STORE) --model $(or $(MODEL),window) --file $(or $(FILE),runs/chaos-$(STORE).json)

rows: $(READY)
	$(BIN)/python -m tests.support.many_rows $(or $(N),1000) $(or $(BAD),30)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist

# Without a stamp an install was cut off and nobody knows what is whole: begin again. With an old one, bring it up to date.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "setting up .venv (some minutes the first time)"
	@test -e $@ || $(PYTHON) -m venv --clear .venv || { \
	  echo "could not make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@rm -f $@
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,s3]'
	@touch $@
