#!/usr/bin/env bash
# Run scaling_fl on this machine:
#
#   ./run-local.sh [--no-docker] scripts/train_federated.py with demo
#   ./run-local.sh [--no-docker] -m pytest
#
# What follows goes to Python as it is; its exit status comes back. Python is that of a virtual environment
# `.venv` beside this file, which is made from requirements.txt at the first call, and brought up to date when
# that file has changed. Modules for development (-m pytest, ruff, mypy) add requirements-dev.txt.
# PYTHON names the interpreter to make it with. Settings in `.env` are honoured (see .env.template).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv

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

# Bring the virtual environment to the state of one requirements file; do nothing if it is there already.
renew() {
    local requirements=$1 stamp=$venv/.$1.installed wanted
    wanted=$(cat "$root/requirements.txt" "$root/$requirements" | cksum)
    local usable=no # not when its Python was upgraded away, or its making broke off
    if "$venv/bin/python" -I -c 'import pip' 2>/dev/null; then usable=yes; fi
    [[ $usable == yes && -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    if [[ $usable == no ]]; then
        local python
        python=$(find_python)
        say "making .venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    say "installing $requirements into .venv; the first time this takes minutes"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/$requirements" >&2
    printf '%s\n' "$wanted" >"$stamp"
}

docker=yes
if [[ ${1:-} == --no-docker ]]; then
    docker=no
    shift
fi
if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
if [[ $docker == yes ]] && command -v docker timeout >/dev/null && timeout 5 docker info >/dev/null 2>&1; then
    say 'a Docker engine answers, but there is no image of this version yet: going on in .venv (--no-docker is silent)'
fi

if [[ -w $root ]] && command -v flock >/dev/null; then # two calls at once: the second waits
    exec 9>"$root/.venv.lock"
    flock 9
fi
case "${1} ${2:-}" in
"-m pytest" | "-m ruff" | "-m mypy") renew requirements-dev.txt ;;
*) renew requirements.txt ;;
esac
exec 9>&-

# A script of this repository is found from any folder.
if [[ $1 != -* && ! -e $1 && -e $root/$1 ]]; then
    set -- "$root/$1" "${@:2}"
fi
exec "$venv/bin/python" "$@"
