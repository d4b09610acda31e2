# Every command of this project. `just` alone lists them; CI calls `just ci`.

# Where the test clients that do not come from the system are installed and found.
export MAILBOXQTT_TEST_TOOLS := absolute_path(env('CARGO_TARGET_DIR', 'target'))

# List the recipes.
[private]
default:
    @just --list --unsorted

# Build with optimisation and serve, by default on 127.0.0.1:1883; ARGS go to the broker.
run *ARGS:
    cargo build --release --bin mailboxqtt
    @exec "${CARGO_TARGET_DIR:-target}/release/mailboxqtt" {{ ARGS }}

# Install what the tests need: mosquitto clients, paho for Python, MQTT.js, Chromium. Quick when all is there.
setup:
    @tests/it/clients/setup.sh "$MAILBOXQTT_TEST_TOOLS"

# Check format, lints and docs, then run all tests of the workspace.
test: setup
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps
    cargo test --workspace
    PYTHONPATH=loadgen python3 -B -m unittest discover --quiet --start-directory loadgen/compare --top-level-directory loadgen

# What CI runs, nothing more and nothing less.
ci: test audit

# Write docs/conformance.md and run its tests; `--addr HOST:PORT` runs them against that broker, whichever it is.
conformance *ARGS:
    #!/usr/bin/env bash
    set -euo pipefail
    set -- {{ ARGS }}
    case "${1:-}" in
        '')
            MAILBOXQTT_WRITE_TABLE=1 cargo test --test conformance_table
            cargo test --test it -- conformance::
            ;;
        --addr)
            MAILBOXQTT_TEST_ADDR="$2" cargo test --quiet --test conformance_table -- \
                --ignored --nocapture verdicts_on_another_broker
            ;;
        *)
            echo 'usage: just conformance [--addr HOST:PORT]' >&2
            exit 2
            ;;
    esac

# Let libFuzzer look for inputs that break TARGET, one of fuzz/fuzz_targets, for SECONDS; see docs/fuzzing.md.
fuzz TARGET SECONDS='60':
    @cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
    @mkdir -p fuzz/target/corpus/{{ TARGET }}
    cargo fuzz run --sanitizer none {{ TARGET }} fuzz/target/corpus/{{ TARGET }} fuzz/corpus/{{ TARGET }} \
        -- -max_total_time={{ SECONDS }} -print_final_stats=1

# Let a hundred clients say random things for SECONDS, while others go on; afterwards all has to be as it was before.
storm SECONDS='60':
    cargo build --release --bin mailboxqtt
    STORM_SECONDS={{ SECONDS }} MAILBOXQTT_TEST_BINARY="$(realpath "${CARGO_TARGET_DIR:-target}")/release/mailboxqtt" \
        cargo test --test storm -- --nocapture broker_is_as_before

# Flood brokers that may use 256 MiB, in a control group as root; they have to serve on. FLOOD is a word of a flood's name.
flood FLOOD='':
    cargo build --release --bin mailboxqtt
    FLOOD={{ quote(FLOOD) }} MAILBOXQTT_TEST_BINARY="$(realpath "${CARGO_TARGET_DIR:-target}")/release/mailboxqtt" \
        cargo test --test storm -- --nocapture survives_floods

# Print what an idle connection costs over each transport, of N.
idle N='1000':
    cargo build --release --bin mailboxqtt
    IDLE_CONNECTIONS={{ N }} MAILBOXQTT_TEST_BINARY="$(realpath "${CARGO_TARGET_DIR:-target}")/release/mailboxqtt" \
        cargo test --test storm -- --nocapture idle_connections

# Cut N clients off at once and let all come back at once over TLS; everybody has to be served.
tls-storm N='10000':
    cargo build --release --bin mailboxqtt
    STORM_CLIENTS={{ N }} MAILBOXQTT_TEST_BINARY="$(realpath "${CARGO_TARGET_DIR:-target}")/release/mailboxqtt" \
        cargo test --test storm -- --nocapture comeback

# Kill the broker N times at random moments while clients use it; nothing that it has acknowledged may be lost.
kill N='100':
    cargo build --release --bin mailboxqtt
    RECOVERY_KILLS={{ N }} MAILBOXQTT_TEST_BINARY="$(realpath "${CARGO_TARGET_DIR:-target}")/release/mailboxqtt" \
        cargo test --test recovery -- --nocapture

# Cut the power of the broker's disk, an ext4 on a loop device, N times, as root; nothing acknowledged may be lost.
cut N='100':
    cargo build --release --bin mailboxqtt
    RECOVERY_POWER_CUTS={{ N }} MAILBOXQTT_TEST_BINARY="$(realpath "${CARGO_TARGET_DIR:-target}")/release/mailboxqtt" \
        cargo test --test recovery -- --ignored --nocapture power

# Check what is linked: licences, sources, duplicates and known vulnerabilities.
audit:
    @packaging/audit.sh "$MAILBOXQTT_TEST_TOOLS/audit"

# Build the image TAG for linux/amd64 and linux/arm64 with buildx; ARGS as in `just image mailboxqtt --load --platform linux/amd64`.
image TAG *ARGS:
    ./docker-build.sh {{ TAG }} {{ ARGS }}

# Run the image TAG and look whether what docs/running.md says of it is true; it takes port 1883 of the loopback interface.
image-test TAG:
    @packaging/test-image.sh {{ TAG }}

# Run the criterion benchmarks; ARGS select some, as in `just bench codec/decode`.
bench *ARGS:
    cargo bench --workspace --bench '*' -- {{ ARGS }}

# Run the same loads against this broker and others, alternating; ARGS as in `just compare 3 --only p2p`, or `--help`.
[positional-arguments]
compare *ARGS:
    @PYTHONPATH=loadgen python3 -B -m compare "$@"
