# Start with `make demo` and `make test`. Both install missing programs first.
.PHONY: demo run test setup audit bench soak

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

demo: ## show how requests are balanced and how a failing backend is taken out
	@sh deploy/setup.sh build
	$(CARGO) run --package shared --bin load_balancer -- demo $(ARGS)

run: ## run the daemon: make run ARGS="-c FILE"
	@sh deploy/setup.sh build
	$(CARGO) run --quiet --package shared --bin load_balancer -- $(ARGS)

test: ## check everything: format, lints, unit, property and process tests, documentation, the demo
	@sh deploy/setup.sh build test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	$(CARGO) build --workspace --quiet
	$(CARGO) test --workspace
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet
	$(CARGO) run --quiet --package shared --bin load_balancer -- demo --once

audit: ## check the dependencies: licences, duplicates, yanked versions, known vulnerabilities
	@sh deploy/setup.sh build audit
	@CARGO="$(CARGO)" sh deploy/audit.sh

setup: ## install what the build, the tests and the benchmark need, from Debian's packages
	@sh deploy/setup.sh build test bench

bench: ## compare CPU, latency and memory with nginx, HAProxy, Envoy and Pingora's bare quick start
	@sh deploy/setup.sh build bench
	$(CARGO) build --release --package shared --bin load_balancer --quiet
	$(CARGO) build --release --package tests --example quickstart --quiet
	python3 tests/benches/run.py --bin $(TARGET)/release/load_balancer --quickstart $(TARGET)/release/examples/quickstart --write $(ARGS)

soak: ## run for long under load and reloads, and compare with nginx and HAProxy: make soak SOAK="nginx"; SOAK=attack: under attack
	@sh deploy/setup.sh build test bench
	$(CARGO) build --release --package shared --bin load_balancer --quiet
	SOAK="$(SOAK)" SOAK_WRITE=1 LOAD_BALANCER_BIN="$(abspath $(TARGET))/release/load_balancer" \
		$(CARGO) test --package tests --test soak -- --ignored --nocapture $(if $(filter attack,$(SOAK)),attack,long_run)
