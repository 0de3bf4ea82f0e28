#!/usr/bin/env bash
# The tests, in the active environment: without an argument the quick ones (`make test`), with `all` everything (`make test-all`, CI).
# Every step runs even if an earlier one failed.
set -u
select=(-m "not slow") cells=()
[ "${1:-}" = all ] && select=() cells=(1500 slow)
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
step "notebooks" python tools/notebooks.py ${cells[@]+"${cells[@]}"}
# two processes, each with whole files: they share fixtures
step "pytest" python -m pytest -n 2 --dist loadfile --durations=8 ${select[@]+"${select[@]}"}

if ((${#failed[@]})); then
    printf '\nFAILED: %s\n' "$(IFS=,; echo "${failed[*]}")"
    exit 1
fi
