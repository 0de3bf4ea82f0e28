#!/usr/bin/env bash
# What `make test` and CI run, in the environment that is active. Every step runs even if an earlier one failed; pytest comes last.
set -u
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 MPLBACKEND=agg PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"
failed=()
step() { # step NAME COMMAND...
    local name=$1 start=$SECONDS; shift
    printf '\n== %s\n' "$name"
    "$@" || failed+=("$name")
    printf '== %s: %s s\n' "$name" "$((SECONDS - start))"
}

step "format" ruff format --check nbs tests tools benchmarks setup.py
step "lint" ruff check nbs tests tools benchmarks setup.py
step "notebooks" python tools/notebooks.py
step "pytest" python -m pytest --durations=8

if ((${#failed[@]})); then
    printf '\nFAILED: %s\n' "$(IFS=,; echo "${failed[*]}")"
    exit 1
fi
