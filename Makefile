# make demo     the first experiment: 12 cells, a report          make test     every test, offline
# make check    lint, types, import floors                        make bench    training speed against the machine
# make soak     breaks the store ten thousand times and counts what was lost; then the saboteurs
# make saboteurs  takes the protections away one at a time and counts which the tests miss
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline WANDB_API_KEY= HF_TOKEN=

.PHONY: demo test check bench soak saboteurs
demo: $(READY)
	$(BIN)/persona-lab run configs/quickstart.yaml

test: $(READY)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

check: $(READY)
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright
	$(OFFLINE) $(BIN)/python -m pytest tests/test_floors.py

bench: $(READY)
	$(OFFLINE) $(BIN)/python -m benchmarks.cells
	$(OFFLINE) $(BIN)/python -m benchmarks.scoring
	$(OFFLINE) $(BIN)/python -m benchmarks.threshold
	$(OFFLINE) $(BIN)/python -m benchmarks.dose
	$(OFFLINE) $(BIN)/python -m benchmarks.sweep
	$(OFFLINE) $(BIN)/python -m benchmarks.forecast

soak: $(READY)
	$(BIN)/python -m tests.faults --tier long
	$(MAKE) saboteurs

saboteurs: $(READY)
	$(OFFLINE) $(BIN)/python -m tests.saboteurs

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is older. Use make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
