# The only door: `make help` lists what there is. `make setup` is called by whatever needs it and takes no time
# when nothing changed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup build demo test soak check lint types format docs bench install uninstall dist clean root

PY := .venv/bin/python
BIN := .venv/bin/fusebpf
# What `make install` writes: PREFIX for the program, SBIN for mount(8)'s helper.
PREFIX ?= /usr/local
SBIN ?= /sbin
export PREFIX SBIN
# Arguments for pytest, bench/run.py and fusebpf's sanitizers, say: make test ARGS='-k readonly -x'
ARGS ?=
SAN ?=
export SAN
comma := ,
# Says what the extension was built with, so that it is built again when that changes.
SAN_STAMP := .venv/.san-$(or $(subst $(comma),-,$(SAN)),none)
# A sanitizer's library must be the first one of every process that imports the extension.
SAN_ENV = $(if $(SAN),LD_PRELOAD=$$(gcc -print-file-name=lib$(if $(findstring thread,$(SAN)),tsan,asan).so) \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1)

CORE := $(wildcard fusebpf/_core/*.[ch]) $(wildcard bpf/*.h)

help: ## show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' \
		| while IFS=$$'\t' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: build ## Debian's packages, .venv, pip's packages, the extension (root where packages are missing)
	@:

.venv/.setup-stamp: pyproject.toml scripts/setup.sh
	@scripts/setup.sh

build: .venv/.build-stamp .venv/.bytecode-stamp ## the C extension, when its sources changed (SAN=address,undefined for sanitizers)
	@:

# Where Python may not write bytecode (PYTHONDONTWRITEBYTECODE), each command would compile all of it anew: 0.1 s.
.venv/.bytecode-stamp: $(wildcard fusebpf/*.py) | .venv/.setup-stamp
	@! $(PY) -m compileall -q --invalidation-mode checked-hash fusebpf || touch $@

.venv/.build-stamp: .venv/.setup-stamp setup.py $(CORE) $(SAN_STAMP)
	@echo "build: fusebpf/_core$(if $(SAN), with -fsanitize=$(SAN))"
	@$(PY) setup.py --quiet build_ext --inplace --force
	@touch $@

$(SAN_STAMP): | .venv/.setup-stamp
	@rm -f .venv/.san-*
	@touch $@

root:
	@[ "$$(id -u)" -eq 0 ] || { echo "fusebpf: only root can mount and load BPF: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

demo: root build ## two chained filters on a real tree, and what they did to real programs (SRC=… MNT=…)
	@$(PY) examples/demo/demo.py $(if $(SRC),--src "$$SRC") $(if $(MNT),--mnt "$$MNT")

test: root build ## all tests, on real mounts (ARGS='-k name')
	@$(SAN_ENV) $(PY) -m pytest $(ARGS)

soak: root build ## the tests that take minutes: random system calls, real programs, fio, crowds (ARGS='-k model')
	@SOAK=1 scripts/setup.sh
	@$(SAN_ENV) $(PY) -m pytest -n0 -m soak $(ARGS)

check: lint types test ## lint, types and tests

lint: .venv/.setup-stamp ## ruff, and its formatter's opinion
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: .venv/.setup-stamp ## mypy --strict
	@$(PY) -m mypy

format: .venv/.setup-stamp ## let ruff format and put right what it can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs: build ## write the generated parts of docs/ (a test says when they are stale)
	@$(PY) scripts/docs.py

bench/out/client: bench/client.c bpf/fusebpf.h
	@mkdir -p $(@D)
	@gcc -std=gnu11 -O2 -g -Wall -Wextra -Werror -Ibpf -o $@ $<

bench: root build bench/out/client ## the yardstick beside its peers, a filter's cost, curves (ARGS='--quick --json FILE')
	@$(PY) bench/run.py $(ARGS)

install: root dist ## the command into PREFIX (/usr/local), mount(8)'s helper into SBIN (/sbin)
	@scripts/install.sh "$$PREFIX" "$$SBIN"

uninstall: root ## undo install
	@scripts/install.sh --remove "$$PREFIX" "$$SBIN"

dist: .venv/.setup-stamp ## sdist and wheel into dist/
	@rm -rf dist
	@$(PY) -m build --no-isolation --outdir dist . >/dev/null
	@ls dist/*

clean: ## remove everything that make made
	@rm -rf .venv build dist bench/out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info fusebpf/_core*.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
