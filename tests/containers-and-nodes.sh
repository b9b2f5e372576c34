#!/usr/bin/env bash
# Run the tests of containers and of several nodes: start a Docker engine with the base image, run the tests, and clean up,
# even after a failure or a signal.
#
#   tests/containers-and-nodes.sh [arguments for pytest]
#
# Needs root on Debian, docker.io, debootstrap, iptables and iproute2. An engine that already runs is used, and kept running.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$(mktemp -d /tmp/sfXXXXXX) # short, because the paths of sockets are limited
chmod 755 "$folder"                # for tests that run as another user
tests=none

say() { printf 'containers-and-nodes.sh: %s\n' "$*" >&2; }

# The processes that the tests started, found by their TMPDIR.
processes() { grep -slF "TMPDIR=$folder" /proc/[0-9]*/environ | cut -d / -f 3; }

leftovers() {
    processes
    pgrep -f "$folder" # the engine
    ip netns list | grep "^sf$tests"
    ls -d "$folder" "/tmp/sf$tests"* 2>/dev/null
    docker ps --all --format '{{.Names}}' 2>/dev/null | grep '^scaling_fl-test-'
} || true

take_down() {
    local status=$? namespace found
    trap '' INT TERM HUP # the clean-up must not be interrupted
    set +e
    processes | xargs -r kill -KILL
    for namespace in $(ip netns list | grep -o "^sf${tests}[a-z0-9]*"); do
        ip netns pids "$namespace" | xargs -r kill -KILL
        ip netns del "$namespace"
    done
    "$root/tests/containers/engine.sh" down "$folder"
    rm -rf "/tmp/sf$tests-"*
    found=$(leftovers)
    if [[ -n $found ]]; then
        say "left behind: $found"
        exit 1
    fi
    say 'nothing is left behind'
    exit "$status"
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if ! docker info >/dev/null 2>&1 || ! docker compose version >/dev/null 2>&1; then
    say 'starting an engine and building the base image'
    engine=$("$root/tests/containers/engine.sh" up "$folder")
    while read -r line; do export "${line?}"; done <<<"$engine"
fi

# In its own process group, so that it receives Ctrl-C once: a second signal would interrupt its clean-up.
set -m
TMPDIR=$folder "$root/run-local.sh" --no-docker -m pytest -n 0 -m 'containers or nodes' "$@" </dev/null &
tests=$!
trap 'asked=130; kill -INT -- "-$tests"' INT
trap 'asked=143; kill -INT -- "-$tests"' TERM HUP
while kill -0 "$tests" 2>/dev/null; do wait "$tests" || true; done
wait "$tests" || exit "${asked:-$?}"
