# make demo    install, compare twelve methods on the built-in starter (the README says how long that takes)
# make test    install, lint, type-check and test
# make report  the full comparison: every method, over three times the budget (docs/report.md)
# make readme  run the demo again and write its table and pictures into the README
# make bench   measured comparisons: training, editing and serving speed, the published ordering
# make real    benchmarks on pretrained models from registry packages; make real-quick: shorter checks
# make docs    the documentation as a site in build/site
# make lock    write constraints.txt anew: the newest versions that pyproject.toml allows
# make oracles our functions compared with those of libraries that cannot live beside us (docs/federate.md, merge.md, prune.md)
# make harness lm-evaluation-harness and lmms-eval against our server, compared with modalign eval (minutes; 2 GB)

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs
HARNESS := build/harness
ORACLES := build/oracles

.PHONY: demo test lint docs readme report bench real real-quick harness harness-suites oracles starter lock clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/modalign compare --out $(OUT)/demo --resume

report: $(VENV)/.installed
	$(BIN)/modalign compare --methods all --budget 40000samples --out $(OUT)/report --resume

readme: $(VENV)/.installed-dev
	$(BIN)/modalign compare --out $(OUT)/readme
	$(BIN)/python -m bench.readme $(OUT)/readme

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy

# Two processes, one thread each: two multi-threaded torch processes are many times slower.
# Bytecode is kept even where the environment says not to: or each process that tests start compiles src again.
test: lint
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(VENV)/.installed-dev
	$(BIN)/python -m bench.coverage
	$(BIN)/python -m bench.speed
	$(BIN)/python -m bench.editing
	$(BIN)/python -m bench.serving
	$(BIN)/python -m bench.ordering --out $(OUT)/ordering
	$(BIN)/python -m bench.editing_facts --out $(OUT)/editing_facts

real: $(VENV)/.installed-dev
	$(BIN)/python -m bench.real models
	$(BIN)/python -m bench.real align
	$(BIN)/python -m bench.real editing

real-quick: $(VENV)/.installed-dev
	$(BIN)/python -m bench.real models --quick
	$(BIN)/python -m bench.real align --quick --only grocery-frozen
	$(BIN)/python -m bench.real editing --quick --only memit

# Each harness in an environment of its own, torch in the CPU build that their constraints.txt names.
$(HARNESS)/%/.requirements: bench/harness/%.txt bench/harness/constraints.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c bench/harness/constraints.txt -r $<
	touch $@

$(HARNESS)/lmms-eval/.installed: $(HARNESS)/lmms-eval/.requirements
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lmms-eval==0.7.3
	touch $@

harness: $(VENV)/.installed $(HARNESS)/lm-eval/.requirements $(HARNESS)/lmms-eval/.installed
	$(BIN)/python -m bench.harness $(if $(MODEL),--model $(MODEL))

# Each library in an environment of its own.
$(ORACLES)/%/.installed: bench/oracles/%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# The text suite against lm-evaluation-harness on the same items: make harness-suites MODEL=folder DATA=folder
harness-suites: $(VENV)/.installed $(HARNESS)/lm-eval-hf/.requirements
	$(BIN)/python -m bench.harness.suites $(MODEL) $(DATA) --python $(HARNESS)/lm-eval-hf/bin/python

oracles: $(VENV)/.installed $(patsubst %,$(ORACLES)/%/.installed,flwr mergekit torch-pruning)
	$(BIN)/python -m bench.oracles.federation $(ORACLES)/flwr/bin/python
	$(BIN)/python -m bench.oracles.merging $(ORACLES)/mergekit/bin/python
	$(BIN)/python -m bench.oracles.pruning $(ORACLES)/torch-pruning/bin/python

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/site
	@echo "build/site/index.html"

starter: $(VENV)/.installed
	$(BIN)/modalign starter build --overwrite

lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	sed -n '/^#/p' constraints.txt > build/constraints.txt
	build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
