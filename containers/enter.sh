#!/bin/sh
# The image's entry point: Python with the arguments, such as `scripts/train_federated.py with demo` or `-m pytest`.
set -eu

code=/opt/scaling_fl

case ${1:-} in
"")
    echo 'scaling_fl: nothing to run; for example: scripts/train_federated.py with demo' >&2
    exit 2
    ;;
-*)
    case "$1 ${2:-}" in
    "-m pytest" | "-m ruff" | "-m mypy") # run on the image's code, unless the working folder is a copy of it
        [ -e pyproject.toml ] || cd "$code"
        ;;
    esac
    ;;
*) # a script: always the image's, because that is the version that the run records
    if [ -e "$code/$1" ]; then
        script=$code/$1
        shift
        set -- "$script" "$@"
    fi
    ;;
esac

if [ -n "${SCALING_FL_DEBUG:-}" ]; then
    echo 'waiting for a debugger at 127.0.0.1:5678' >&2
    set -- -X frozen_modules=off -m debugpy --listen 0.0.0.0:5678 --wait-for-client "$@"
fi
exec python "$@"
