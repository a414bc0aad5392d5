#!/usr/bin/env bash
# From an empty machine to Milestone 0: sets up if need be, then one example end to end, every step printed.
#
#   bash scripts/speedrun.sh                            this machine's default model
#   bash scripts/speedrun.sh --model sandbox --seed 3   any flag of scripts/test_single.py
#
# Exit status: 0 GO, 3 NO-GO, 2 when something is missing, with the reason.
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
exec .venv/bin/python scripts/test_single.py "$@"
