#!/usr/bin/env bash
# From an empty machine to Milestone 2: sets up if need be, then one example with every step printed (M0), ten
# (M1) and a hundred (M2), each read, trained on and measured; ends with the three gates and the page to read.
#
#   bash scripts/speedrun.sh                    this machine's default model
#   bash scripts/speedrun.sh --seed 3           --model, --bits, --set, --seed, --constitution, --hourly-rate, --fresh
#
# A milestone that says NO-GO ends it, with what to look at. Killed at any moment, the same command goes on.
# Exit status: 0 GO three times, 3 NO-GO, 2 when something is missing, with the reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Set-up checks disk and memory for the model that M0 is about to load.
wanted=() previous=''
for argument in "$@"; do
  case $argument in --model=* | --bits=*) wanted+=("${argument%%=*}" "${argument#*=}") ;; esac
  case $previous in --model | --bits) wanted+=("$previous" "$argument") ;; esac
  previous=$argument
done
bash setup_environment.sh ${wanted[@]+"${wanted[@]}"}

status=0
for milestone in test_single.py test_batch.py generate_mvp.py; do
  printf '\n== %s %s\n' "$milestone" "$*"
  .venv/bin/python "scripts/$milestone" "$@" || { status=$? && break; }
done
.venv/bin/python scripts/runs.py single batch mvp
exit "$status"
