# `make run` starts the demonstration, `make test` runs every test; both do all set-up on Debian 12 with Rust.

INSTALL = tests/setup/install
# What compiling takes: a C compiler and cmake for the C parts of TLS and compression.
BUILD_PACKAGES = build-essential cmake
# The demonstration tells commands that use it.
RUN_PACKAGES = curl
# What the tests run beside the proxy.
TEST_PACKAGES = curl openssl python3
APP_PACKAGES = nginx-light php-fpm php-cli php-mysql phpmyadmin dokuwiki mariadb-server mariadb-client chromium chromium-driver
PEER_PACKAGES = nginx-light haproxy apache2-utils nghttp2-client python3 python3-grpcio python3-websockets
BENCH_PACKAGES = nginx-light nghttp2-client valgrind
HOST_PACKAGES = keepalived iproute2 buildah debootstrap systemd systemd-container python3 openssl curl

# Where cargo puts what it builds.
TARGET = $$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

.PHONY: run build test test-apps test-host test-peers soak lint bench bench-nginx bench-scale clean

## Starts the demonstration: its own backends, domains and certificate.
run: build
	@$(INSTALL) $(RUN_PACKAGES)
	@exec $(TARGET)/release/portcullis demo $(ARGS)

build:
	@$(INSTALL) $(BUILD_PACKAGES)
	cargo build --release --locked

## Formatting, lints, unit and end-to-end tests.
test:
	@$(INSTALL) $(BUILD_PACKAGES) $(TEST_PACKAGES)
	$(MAKE) --no-print-directory lint
	cargo test --locked

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --test apps --test peers -- -D warnings

## Real phpMyAdmin, MariaDB, DokuWiki and Chromium behind the real proxy.
test-apps:
	@$(INSTALL) $(BUILD_PACKAGES) $(TEST_PACKAGES) $(APP_PACKAGES)
	cargo test --locked --test apps -- --nocapture

## Every protocol against programs that others wrote: nginx, HAProxy, gRPC, WebSockets, curl, ab, nghttp.
test-peers:
	@$(INSTALL) $(BUILD_PACKAGES) $(TEST_PACKAGES) $(PEER_PACKAGES)
	cargo test --locked --test peers

## What a machine does with it: a real systemd, the container image as PID 1, a virtual address that keepalived moves. As root.
# systemd.py ends with 2 where no container boots a systemd, whatever is in it.
test-host:
	@$(INSTALL) $(BUILD_PACKAGES) $(HOST_PACKAGES)
	tests/host/units.sh
	cargo build --release --locked
	tests/host/failover.py --portcullis $(TARGET)/release/portcullis
	tests/host/systemd.py $(TARGET)/release/portcullis || [ $$? -eq 2 ]
	tests/host/container.py

## 100 reloads and 20 upgrades under load, and what a reload costs.
soak:
	@$(INSTALL) $(BUILD_PACKAGES) $(HOST_PACKAGES)
	cargo build --release --locked
	python3 tests/soak/never_drop.py $(TARGET)/release/portcullis

## What a look-up costs at 10, 10,000 and 1,000,000 rows, in instructions and bytes.
bench:
	@$(INSTALL) $(BUILD_PACKAGES) valgrind
	tests/bench/lookup.sh

## Time and memory of 100,000 sites, 1,000,000 users and 10,000 certificates.
bench-scale:
	@$(INSTALL) $(BUILD_PACKAGES) nginx-light python3 openssl
	cargo build --release --locked
	python3 tests/bench/scale.py $(TARGET)/release/portcullis

## CPU time of a request against nginx, in one run.
bench-nginx:
	@$(INSTALL) $(BUILD_PACKAGES) $(BENCH_PACKAGES)
	cargo build --release --locked
	tests/bench/against_nginx.sh

clean:
	cargo clean
