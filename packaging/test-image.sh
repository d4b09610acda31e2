#!/usr/bin/env bash
# Runs the image TAG as docs/running.md says, and looks whether what is written there is true. It needs the mosquitto
# clients, and takes port 1883 of the loopback interface.
#
#   packaging/test-image.sh mailboxqtt
#   ENGINE='podman --cgroup-manager cgroupfs' RUN='--ulimit nofile=4096:4096' packaging/test-image.sh mailboxqtt
set -euo pipefail

image=$1
read -ra engine <<<"${ENGINE:-docker}"
read -ra run <<<"${RUN:-}"
name=mailboxqtt-test-$$
settings=$(mktemp -d)

main() {
    trap clean EXIT
    chmod 755 "$settings"

    local bytes
    bytes=$("${engine[@]}" image inspect --format '{{.Size}}' "$image")
    that "the image has $((bytes / 1024)) KiB, which is less than 30 MB" test "$bytes" -lt 30000000
    that 'its user is 65532' test "$("${engine[@]}" image inspect --format '{{.Config.User}}' "$image")" = 65532:65532
    that 'it has no shell' test "$(exit_code "${engine[@]}" run --rm "${run[@]}" --entrypoint /bin/sh "$image")" = 127

    start --volume "$name:/data"
    that 'clients are served' mosquitto_pub -t kept -q 1 -r -m hello
    that 'its health check says so' "${engine[@]}" exec "$name" /usr/bin/mailboxqtt health
    stop
    start --volume "$name:/data" --read-only --cap-drop ALL --security-opt no-new-privileges --memory 256m
    that 'the volume outlives the container, without capabilities and on a read-only file system' \
        test "$(mosquitto_sub -t kept -C 1 -W 5)" = hello
    that 'a user is made in the volume' passwd
    stop

    printf 'listen = "0.0.0.0:1883"\n[authentication]\npassword_file = "/data/users"\n' >"$settings/mailboxqtt.toml"
    start --volume "$name:/data" --volume "$settings/mailboxqtt.toml:/etc/mailboxqtt.toml:ro"
    that_not 'settings of its own end the consent to anonymous clients' mosquitto_pub -t kept -m no
    that 'and let the user in' mosquitto_pub -u alice -P secret -t kept -m yes
    stop

    start --env MAILBOXQTT_CONFIG=/settings/mailboxqtt.toml --volume "$name:/data" --volume "$settings:/settings:ro"
    printf 'allow_anonymous = true\nlisten = "0.0.0.0:1883"\n' >"$settings/new"
    mv "$settings/new" "$settings/mailboxqtt.toml"
    "${engine[@]}" kill --signal HUP "$name" >/dev/null
    that 'SIGHUP reads settings in a mounted folder again' eventually mosquitto_pub -t kept -m again
    stop
    echo "test-image: all of it is true of $image"
}

# Starts the container with the arguments in front of the image, and waits until it serves.
start() {
    "${engine[@]}" run --detach --name "$name" --publish 127.0.0.1:1883:1883 "${run[@]}" "$@" "$image" >/dev/null
    eventually "${engine[@]}" exec "$name" /usr/bin/mailboxqtt health
}

stop() {
    "${engine[@]}" stop --time 60 "$name" >/dev/null
    that 'SIGTERM ends it in order' test "$("${engine[@]}" inspect --format '{{.State.ExitCode}}' "$name")" = 0
    "${engine[@]}" rm "$name" >/dev/null
}

passwd() {
    echo secret | "${engine[@]}" run --rm --interactive "${run[@]}" --volume "$name:/data" "$image" passwd /data/users alice
}

eventually() {
    for _ in {1..100}; do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    "${engine[@]}" logs "$name" >&2
    return 1
}

that() {
    local sentence=$1
    shift
    "$@" >/dev/null || {
        echo "test-image: not so: $sentence" >&2
        exit 1
    }
    echo "test-image: $sentence"
}

that_not() {
    local sentence=$1
    shift
    that "$sentence" not "$@"
}

not() { ! "$@" 2>/dev/null; }

exit_code() {
    local code=0
    "$@" >/dev/null 2>&1 || code=$?
    echo "$code"
}

clean() {
    "${engine[@]}" rm --force "$name" >/dev/null 2>&1 || true
    "${engine[@]}" volume rm "$name" >/dev/null 2>&1 || true
    rm -rf "$settings"
}

main
