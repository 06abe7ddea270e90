# The few commands a person types. The first one of any kind makes .venv and installs (a few minutes); later ones start at once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: verify test fast lint docs bench variance clean

verify: $(STAMP)  ## the main job: every claim of the ledger on several instances
	$(BIN)/llm-mdp verify

test: $(STAMP)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

fast: $(STAMP)  ## all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

lint: $(STAMP)  ## ruff, pyright
	$(BIN)/ruff check
	$(BIN)/pyright

docs: $(STAMP)  ## the README's ledger and figures, and the pages on agents and environments
	$(BIN)/llm-mdp verify --json benchmarks/results/ledger.json --html benchmarks/results/ledger.html > /dev/null
	$(BIN)/python -m llm_mdp.report.readme benchmarks/results/ledger.json README.md
	$(BIN)/python -m llm_mdp_envs.registry
	$(BIN)/python -m llm_mdp_agents.zoo
	$(BIN)/python benchmarks/figures.py
	$(BIN)/python benchmarks/summary.py
	$(BIN)/python benchmarks/variance_report.py

bench: $(STAMP)  ## speed, side by side in one run
	$(BIN)/python benchmarks/tree_dp.py
	$(BIN)/python benchmarks/sampled_rate.py
	$(BIN)/python benchmarks/env_rate.py
	$(BIN)/python benchmarks/sandbox_rate.py
	$(BIN)/python benchmarks/sb3.py
	$(BIN)/python benchmarks/branching.py
	$(BIN)/python benchmarks/peers/compare.py
	$(BIN)/python benchmarks/summary.py

variance: $(STAMP)  ## what benchmarks/variance.md says, computed anew (about 20 minutes), and written
	rm -rf runs/variance-benchmark
	$(BIN)/python benchmarks/variance.py typical claims equal-tokens horizons allocation language-model
	$(BIN)/python benchmarks/variance_report.py

clean:
	rm -rf .venv dist build

# constraints.txt pins torch to a release that has a CPU build, so that pip does not fetch gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'LLM-MDP needs Python 3.11 or later: make PYTHON=python3.11 verify')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
