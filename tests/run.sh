#!/usr/bin/env bash
# Sets up this machine, then lint and tests.
#
#   bash tests/run.sh                 the default suite
#   bash tests/run.sh --slow          the slow tests only
#   bash tests/run.sh tests/generation/test_loop.py -k resume      further arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
  -h | --help)
    awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' tests/run.sh
    exit 0
    ;;
esac
suite='not slow'
if [ "${1:-}" = --slow ]; then
  suite=slow
  shift
fi
bash setup_environment.sh --dev
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -q -m "$suite" "$@"
