#!/usr/bin/env bash
# The tests of containers and of several nodes, from nothing and back to nothing: sets up a Docker engine, the base image
# and networks of machines, runs the tests, and takes everything down, whatever happens.
#
#   tests/containers-and-nodes.sh [arguments for pytest]
#
# Debian, as root, with docker.io, debootstrap, iptables and iproute2. Where an engine answers, that one is used, and stays.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$(mktemp -d /tmp/sfXXXXXX) # short, as names of sockets must be
chmod 755 "$folder"               # for tests as another user
tests=none

say() { printf 'containers-and-nodes.sh: %s\n' "$*" >&2; }

# What the tests started: it has their folder for temporary files.
processes() { grep -slF "TMPDIR=$folder" /proc/[0-9]*/environ | cut -d / -f 3; }

left() {
    processes
    pgrep -f "$folder" # the engine
    ip netns list | grep "^sf$tests"
    ls -d "$folder" "/tmp/sf$tests"* 2>/dev/null
    docker ps --all --format '{{.Names}}' 2>/dev/null | grep '^scaling_fl-test-'
} || true

take_down() {
    local status=$? namespace found
    trap '' INT TERM HUP # what was begun is ended
    set +e
    processes | xargs -r kill -KILL
    for namespace in $(ip netns list | grep -o "^sf${tests}[a-z0-9]*"); do
        ip netns pids "$namespace" | xargs -r kill -KILL
        ip netns del "$namespace"
    done
    "$root/tests/containers/engine.sh" down "$folder"
    rm -rf "/tmp/sf$tests-"*
    found=$(left)
    if [[ -n $found ]]; then
        say "this is left: $found"
        exit 1
    fi
    say 'nothing is left'
    exit "$status"
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if ! docker info >/dev/null 2>&1 || ! docker compose version >/dev/null 2>&1; then
    say 'starting an engine, and making the base image'
    engine=$("$root/tests/containers/engine.sh" up "$folder")
    while read -r line; do export "${line?}"; done <<<"$engine"
fi

# In a process group of its own, so that Ctrl-C reaches it once: a second one would break off its tidying up.
set -m
TMPDIR=$folder "$root/run-local.sh" --no-docker -m pytest -m 'containers or nodes' "$@" </dev/null &
tests=$!
trap 'asked=130; kill -INT -- "-$tests"' INT
trap 'asked=143; kill -INT -- "-$tests"' TERM HUP
while kill -0 "$tests" 2>/dev/null; do wait "$tests" || true; done
wait "$tests" || exit "${asked:-$?}"
