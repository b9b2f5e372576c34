#!/usr/bin/env bash
# Run scaling_fl on this machine, in a container or in a virtual environment.
#
# Usage: ./run-local.sh [--no-docker] SCRIPT.py | -m MODULE [ARGUMENT...]
#
#   ./run-local.sh scripts/train_federated.py with demo  # fine-tune on four sites
#   ./run-local.sh scripts/train_federated.py --help     # commands and examples
#   ./run-local.sh scripts/train_federated.py help       # all keys with defaults
#   ./run-local.sh -m pytest                             # the tests
#   COMPOSE_FILE="docker-compose.yaml:docker-compose.debug.yaml" \
#       ./run-local.sh scripts/train_federated.py with demo  # wait for a debugger
#
# Arguments are passed to Python unchanged, and its exit status is returned.
#
# If a Docker engine and Compose are available, Python runs in a container, whose
# image is built first if it is out of date. This folder is /workspace there, and
# Ctrl-C and SIGTERM reach the job. Otherwise, or with --no-docker, Python runs in
# .venv beside this script. The first call creates .venv, and later calls update
# it when requirements.txt has changed; -m pytest, ruff, mypy and mkdocs also need
# requirements-dev.txt. PYTHON=… names the interpreter to create .venv with.
# TORCH_INDEX=… names the package index that PyTorch is installed from. Without
# it, a Linux machine without an NVIDIA driver gets a build without CUDA, and
# others get the build of PyPI.
#
# Settings are read from .env (see .env.template). docs/docker-and-debugging.md
# has more.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf 'run-local.sh: %s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    say 'no Python 3.11, 3.12 or 3.13 with the module venv was found; install one (Debian: apt-get install python3-venv)' \
        'or name it: PYTHON=/path/to/python ./run-local.sh …'
    exit 1
}

# Install one requirements file into the virtual environment, unless it is already up to date.
install_requirements() {
    local requirements=$1 stamp=$venv/.$1.installed wanted
    wanted=$(cat "$root/requirements.txt" "$root/$requirements" | cksum)
    local usable=no # its Python may have been upgraded away, or its creation interrupted
    if "$venv/bin/python" -I -c 'import pip' 2>/dev/null; then usable=yes; fi
    [[ $usable == yes && -f $stamp && $(<"$stamp") == "$wanted" ]] && has_torch_of_index && return
    if [[ $usable == no ]]; then
        local python
        python=$(find_python)
        say "creating .venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    say "installing $requirements into .venv; the first time, this takes a few minutes"
    install_pytorch
    pip_install -r "$root/$requirements" | show_progress
    printf '%s\n' "$wanted" >"$stamp"
}

pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@"; }

# Of pip's output, show the large downloads and the last step.
show_progress() {
    local line file
    while IFS= read -r line; do
        case $line in
        *Downloading\ *\ [MG]B\))
            file=${line#*Downloading }
            say "downloading ${file##*/}"
            ;;
        Installing\ collected\ packages:*)
            line=${line//[^,]/}
            say "unpacking $((${#line} + 1)) package$([[ -z $line ]] || echo s)"
            ;;
        esac
    done
}

# Install PyTorch from TORCH_INDEX, if it is set. Otherwise, on Linux without an NVIDIA driver, install it from PyTorch's
# index of builds without CUDA; where that index can't be reached, pip's usual index serves PyTorch with all the rest.
install_pytorch() {
    local torch index
    torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$root/requirements.txt")
    if [[ -z $torch ]]; then return; fi
    if compgen -G "$venv/lib/python3*/site-packages/${torch/==/-}*.dist-info" >/dev/null && has_torch_of_index; then return; fi
    if index=${TORCH_INDEX-$(from_env_file TORCH_INDEX)}; then
        if [[ -z $index ]]; then return; fi
        say "installing $torch from TORCH_INDEX=$index"
        pip_install --no-deps --force-reinstall --index-url "$index" "$torch" | show_progress
        printf '%s\n' "$index" >"$venv/.torch-index"
    elif [[ $(uname -s) == Linux && ! -e /proc/driver/nvidia/version ]] && ! command -v nvidia-smi >/dev/null; then
        say "no NVIDIA driver: installing $torch without CUDA, from $cpu_index (TORCH_INDEX=… names another index)"
        pip_install --retries 0 --timeout 15 --no-deps --index-url "$cpu_index" "$torch" 2>/dev/null | show_progress ||
            say "$cpu_index can't be reached, or lacks $torch: pip's usual index serves it, perhaps with several GB of CUDA"
    fi
}

# Whether TORCH_INDEX isn't set, or is the index that PyTorch was installed from.
has_torch_of_index() {
    local index
    index=${TORCH_INDEX-$(from_env_file TORCH_INDEX)} || return 0
    [[ -z $index || $index == "$(cat "$venv/.torch-index" 2>/dev/null)" ]]
}

# Print the value of a variable in .env; fail if no line sets it.
from_env_file() {
    local line
    line=$(grep -E "^(export +)?$1=" "$root/.env" 2>/dev/null | tail -n 1) || return 1
    line=${line#*=}
    line=${line%% #*}
    printf '%s\n' "${line//[\"\' ]/}"
}

# Print what a container run lacks; print nothing if it lacks nothing.
missing_for_docker() {
    local answer version
    if ! command -v docker >/dev/null; then
        echo 'docker is not installed'
    elif ! answer=$(with_timeout 10 docker info --format '{{.ServerVersion}}' 2>&1); then
        echo "no Docker engine answers (${answer##*$'\n'})"
    elif ! version=$(docker compose version --short 2>/dev/null); then
        echo 'Docker has no Compose v2 (package docker-compose-plugin or docker-compose-v2)'
    elif ! printf '%s\n' 2.24 "${version#v}" | sort -CV; then
        echo "Docker Compose is ${version#v}, but 2.24 or later is needed"
    fi
}

with_timeout() {
    if command -v timeout >/dev/null; then timeout "$@"; else "${@:2}"; fi
}

# Run a command in the background and wait for it, so that traps run at once; set `status` to its exit status.
status=0
job=''
early='' # a signal that arrived before the job was started
run_job() {
    job=''
    "$@" <&0 &
    job=$!
    if [[ -n $early ]]; then pass_on "$early"; fi
    while kill -0 "$job" 2>/dev/null; do wait "$job" || true; done
    status=0
    wait "$job" || status=$?
}

in_container() {
    local name file folder_made='' security engine_runtimes gpus gpu_file=''
    local -a files compose terminal=(--no-TTY)
    # A unique name, so that concurrent calls don't collide.
    name=scaling_fl-$(date +%Y%m%d-%H%M%S)-$$-$RANDOM
    security=$(docker info --format '{{.SecurityOptions}} {{range $name, $_ := .Runtimes}}{{$name}} {{end}}')
    engine_runtimes=" ${security##*] }"
    export SCALING_FL_FOLDER=$PWD SCALING_FL_USER SCALING_FL_COMMIT SCALING_FL_IMAGE SCALING_FL_CACHE SCALING_FL_CACHE_EXISTS
    SCALING_FL_USER=$(id -u):$(id -g)
    if [[ $security == *name=rootless* ]]; then SCALING_FL_USER=0:0; fi # rootless: the container's root is the caller
    # Each copy of this repository has its own image, so that none runs another's code.
    SCALING_FL_IMAGE=${SCALING_FL_IMAGE:-scaling_fl-$(printf %s "$root" | cksum | cut -d ' ' -f 1)}
    SCALING_FL_CACHE=${SCALING_FL_CACHE:-scaling_fl-cache-${SCALING_FL_USER%:*}}
    SCALING_FL_CACHE_EXISTS=true
    SCALING_FL_COMMIT=$(git -C "$root" rev-parse HEAD 2>/dev/null || true)
    if [[ -n $SCALING_FL_COMMIT && -n $(git -C "$root" status --porcelain --untracked-files=no 2>/dev/null) ]]; then
        SCALING_FL_COMMIT+=-dirty
    fi

    IFS=: read -ra files <<<"${COMPOSE_FILE:-docker-compose.yaml}"
    gpus=${NVIDIA_VISIBLE_DEVICES:-$(from_env_file NVIDIA_VISIBLE_DEVICES || true)}
    if [[ $engine_runtimes == *' nvidia '* && ! ${gpus:-all} =~ ^(void|none)$ ]]; then
        if [[ $gpus == *,* ]]; then # one entry for each: there is no device "0,1" for an engine that uses CDI
            gpu_file=$(mktemp)
            sed "s|\"\${NVIDIA_VISIBLE_DEVICES:-all}\"|\"${gpus//,/\", \"}\"|" "$root/docker-compose.gpu.yaml" >"$gpu_file"
        fi
        files+=("${gpu_file:-docker-compose.gpu.yaml}")
    fi
    compose=(docker compose --project-name "$name" --project-directory "$root")
    for file in "${files[@]}"; do
        if [[ $file != /* && -e $root/$file ]]; then file=$root/$file; fi
        compose+=(--file "$file")
    done

    # If data/ is missing, the engine would create the mount point as root.
    if [[ ! -e data ]] && mkdir data 2>/dev/null; then folder_made=$PWD/data; fi
    # shellcheck disable=SC2329  # the trap calls it
    clean_up() {
        docker rm --force "$name" >/dev/null 2>&1 || true
        "${compose[@]}" down --remove-orphans --timeout 0 >/dev/null 2>&1 || true
        if [[ -n $folder_made ]]; then rmdir "$folder_made" 2>/dev/null || true; fi
        if [[ -n $gpu_file ]]; then rm -f "$gpu_file"; fi
    }
    trap clean_up EXIT

    local stop_status='' # set by a signal before the job starts
    trap 'stop_status=130; kill -TERM "$job" 2>/dev/null || true' INT
    trap 'stop_status=143; kill -TERM "$job" 2>/dev/null || true' TERM HUP
    build
    if [[ -n $stop_status ]]; then exit "$stop_status"; fi
    docker volume create "$SCALING_FL_CACHE" >/dev/null

    # A terminal in raw mode sends Ctrl-C as a character. Without a terminal, the signal would reach both Compose and
    # this script, and the job twice: so Compose gets its own process group.
    if [[ -t 0 && -t 1 ]]; then
        terminal=()
    else
        set -m
        if [[ -t 0 ]]; then exec </dev/null; fi
    fi
    job=''
    trap 'pass_on INT' INT
    trap 'pass_on TERM' TERM
    trap 'pass_on HUP' HUP
    if [[ -n $stop_status ]]; then exit "$stop_status"; fi # the signal arrived after the build
    run_job "${compose[@]}" --progress quiet run --rm --name "$name" --service-ports ${terminal[@]+"${terminal[@]}"} main "$@"
    exit "$status"
}

# Build the image; silent if there is nothing to do.
build() {
    local log
    log=$(mktemp)
    if [[ -z $(docker image ls --quiet --filter "reference=$SCALING_FL_IMAGE") ]]; then
        say "building the image $SCALING_FL_IMAGE; the first build takes a few minutes"
    fi
    run_job "${compose[@]}" build main >"$log" 2>&1
    if [[ $status -ne 0 && -z $stop_status ]]; then
        cat "$log" >&2
        say 'the image could not be built (--no-docker runs without one)'
    fi
    rm -f "$log"
    if [[ $status -ne 0 && -z $stop_status ]]; then exit "$status"; fi
}

# Pass a signal to the job once its container's first process handles signals: the kernel would drop an earlier one.
pass_on() {
    local tries=0 passed=no
    if [[ -z $job ]]; then early=$1; fi
    while [[ $passed == no && -n $job ]] && kill -0 "$job" 2>/dev/null; do
        tries=$((tries + 1))
        if { takes_signals || [[ $tries -gt 30 ]]; } && docker kill --signal "$1" "$name" >/dev/null 2>&1; then
            passed=yes
        else
            sleep 0.1
        fi
    done
}

# Docker's init ignores SIGTTIN and SIGTTOU once it has blocked all other signals to forward them.
takes_signals() { docker exec "$name" grep -q '^SigIgn:.*[37bf].\{5\}$' /proc/1/status >/dev/null 2>&1; }

docker=yes
if [[ ${1:-} == --no-docker ]]; then
    docker=no
    shift
fi
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }
case ${1:-} in
-h | --help)
    usage
    exit
    ;;
"")
    usage >&2
    exit 2
    ;;
--version) ;;
--*)
    say "$1: there is no such option; --help shows what there is"
    exit 2
    ;;
esac
if [[ $1 != -* && ! -e $1 && ! -e $root/$1 ]]; then
    say "$1: there is no such script here or in $root; --help shows what there is"
    exit 2
fi
if [[ $docker == yes ]]; then
    missing=$(missing_for_docker)
    if [[ -z $missing ]]; then in_container "$@"; fi
    if [[ -n ${COMPOSE_FILE:-} ]]; then
        say "COMPOSE_FILE requires a container, but $missing (--no-docker runs without one)"
        exit 1
    elif [[ $missing != 'docker is not installed' ]]; then
        say "$missing: using .venv instead (--no-docker suppresses this note)"
    fi
fi

if [[ -w $root ]] && command -v flock >/dev/null; then # concurrent calls wait for each other
    exec 9>"$root/.venv.lock"
    if ! flock --timeout 2 9; then
        say 'another call is installing .venv; waiting until it is done'
        flock 9
    fi
fi
case "${1} ${2:-}" in
"-m pytest" | "-m ruff" | "-m mypy" | "-m mkdocs") install_requirements requirements-dev.txt ;;
*) install_requirements requirements.txt ;;
esac
exec 9>&-

# Find this repository's scripts from any folder.
if [[ $1 != -* && ! -e $1 && -e $root/$1 ]]; then
    set -- "$root/$1" "${@:2}"
fi
exec "$venv/bin/python" "$@"
