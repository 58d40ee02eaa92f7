# The two commands a stranger needs are `make demo` and `make test`; both set up what is missing first.
.PHONY: demo run test setup bench soak

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

demo: ## shows requests being balanced and a failing backend being left out
	@sh deploy/setup.sh build
	$(CARGO) run --package shared --bin load_balancer -- demo $(ARGS)

run: ## runs the daemon: make run ARGS="-c FILE"
	@sh deploy/setup.sh build
	$(CARGO) run --quiet --package shared --bin load_balancer -- $(ARGS)

test: ## everything that must hold: format, lints, unit, property and process tests, documentation, the demo
	@sh deploy/setup.sh build test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	$(CARGO) build --workspace --quiet
	$(CARGO) test --workspace
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet
	$(CARGO) run --quiet --package shared --bin load_balancer -- demo --once

setup: ## installs what build, tests and benchmark need, from Debian's packages
	@sh deploy/setup.sh build test bench

bench: ## CPU, latency and memory side by side with nginx, HAProxy, Envoy and a bare Pingora quick start
	@sh deploy/setup.sh build bench
	$(CARGO) build --release --package shared --bin load_balancer --quiet
	$(CARGO) build --release --package tests --example quickstart --quiet
	python3 tests/benches/run.py --bin $(TARGET)/release/load_balancer --quickstart $(TARGET)/release/examples/quickstart $(ARGS)

soak: ## a long run under load and change, of which every byte is checked, and the same on nginx and HAProxy: make soak SOAK="nginx"
	@sh deploy/setup.sh build test bench
	$(CARGO) build --release --package shared --bin load_balancer --quiet
	SOAK="$(SOAK)" LOAD_BALANCER_BIN="$(abspath $(TARGET))/release/load_balancer" \
		$(CARGO) test --package tests --test soak -- --ignored --nocapture
