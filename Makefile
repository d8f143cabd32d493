# Every target does its own set-up: the first call installs, later ones only look.
SHELL := /bin/bash

python := .venv/bin/python
setup := config/setup.sh

.PHONY: help setup run test fault-test fault-test-long vm-test vm-bench vm-kernels vm lint bench bench-long kafka kafka-stop clean

help:
	@sed -n 's/^#> //p' Makefile

#> make setup        install what is missing; the command is then .venv/bin/promissory
setup:
	@$(setup)
	@if [ -s .setup/no-kafka ]; then sed 's/^Kafka: //; s/^/no Kafka here: /' .setup/no-kafka; fi
	@echo "ready: .venv/bin/promissory"

#> make run          show live events while Kafka takes them   [DURATION=seconds] [ARGS='...']
run:
	@config/run.sh $(if $(DURATION),--duration $(DURATION)) $(ARGS)

#> make test         every check and every test, on this kernel and on Debian's [ARGS='...' for pytest: this one alone]
test: lint vm-kernels
	@status=0; .venv/bin/pytest $(ARGS) || status=$$?; \
	$(if $(ARGS),echo "not run: make vm-test",$(python) -m tests.vm test || status=$$?); exit $$status

#> make fault-test   every fault that can be made, in short; writes docs/faults.md (make test runs them too)
fault-test:
	@$(setup)
	@rm -rf .faults
	@.venv/bin/pytest tests/faults $(ARGS); status=$$?; $(python) -m tests.faults --write; exit $$status

#> make fault-test-long  the same with all numbers: hours
fault-test-long:
	@FAULTS=long $(MAKE) fault-test

#> make vm-test      live tests inside Debian's kernels, in virtual machines   [ARGS='6.1 6.12 ...']
vm-test: vm-kernels
	@$(python) -m tests.vm test $(ARGS)

#> make vm-bench     what storms pay inside one of them, beside other collectors: docs/benchmarks-vm.md
vm-bench: vm-kernels
	@CACHE_DIRECTORY=$(CURDIR)/.vm/programs $(python) -m tests.vm.programs 6.12 bench
	@$(python) -m tests.vm run 6.12 --counted --timeout 3000 -- $(python) -m tests.bench overhead --report benchmarks-vm

# What cannot be fetched is said, and fails a test only in continuous integration.
vm-kernels:
	@$(setup) vm
	@$(python) -m tests.vm fetch >/dev/null || [ "$$CI" != true ]

#> make vm           one command inside one of them            [KERNEL=6.12] [COMMAND='...']
vm: vm-kernels
	@$(python) -m tests.vm run $(or $(KERNEL),6.12) -- $(or $(COMMAND),uname -a)

#> make lint         the checks alone
lint:
	@$(setup)
	@.venv/bin/ruff check --quiet
	@.venv/bin/flake8 pipeline tests config
	@.venv/bin/mypy

#> make bench        measure; bench-long takes over ten minutes more
bench:
	@$(setup)
	@$(python) -m tests.bench $(ARGS)

bench-long:
	@$(setup)
	@$(python) -m tests.bench --long $(ARGS)

#> make kafka        start Apache Kafka on the loopback; prints HOST:PORT
kafka:
	@$(setup)
	@$(python) config/kafka/broker.py start

#> make kafka-stop   stop it; its data stays in .kafka
kafka-stop:
	@/usr/bin/python3 config/kafka/broker.py stop

#> make clean        remove what can be made again; Kafka's data stays
clean:
	@if [ -e .kafka/pid ]; then /usr/bin/python3 config/kafka/broker.py stop; fi
	@rm -rf .venv .setup .kafka/jars-* .vm .faults dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
