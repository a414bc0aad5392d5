#!/usr/bin/env bash
# From an empty machine to Milestone 2: sets up if need be, then one example with every step printed (M0), ten
# (M1) and a hundred (M2), each read, trained on and measured; ends with the three gates and the page to read.
#
#   bash scripts/speedrun.sh                    this machine's default model
#   bash scripts/speedrun.sh --seed 3           also --model, --bits, --set, --constitution, --budget (of each
#                                               milestone), --hourly-rate, --fresh
#
# A milestone that says NO-GO ends it, with what to look at; one that is UNDECIDED (too few cases to tell) is
# said and passed by. Killed at any moment, the same command goes on. Exit status: 0 GO three times, 3 NO-GO,
# 5 at least one is UNDECIDED, 4 a budget is reached, 2 when something is missing, with the reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'error: %q %s\n' "$1" "$2" >&2
  exit 2
}

# Flags are checked before set-up, which may take minutes; their values by the milestones, once there is a Python.
# Set-up checks disk and memory for the model that M0 is about to load.
known='--model --bits --set --seed --constitution --hourly-rate --budget --fresh'
wanted=() flag='' given=''
for argument in "$@"; do
  case $argument in
    -h | --help)
      awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' scripts/speedrun.sh
      exit 0
      ;;
    --*)
      [ -z "$flag" ] || [ -n "$given" ] || fail "$flag" 'needs a value'
      flag=${argument%%=*} given=''
      case " $known " in *" $flag "*) ;; *) fail "$argument" "is no flag of speedrun.sh: it takes $known" ;; esac
      case $argument in
        --fresh) flag='' ;;
        --fresh=*) fail "$argument" 'takes no value' ;;
        *=*) given=${argument#*=} ;;
      esac
      ;;
    *)
      [ -n "$flag" ] && { [ -z "$given" ] || [ "$flag" = --set ]; } ||
        fail "$argument" "belongs to no flag: speedrun.sh takes $known"
      given=$argument
      ;;
  esac
  case $flag in --model | --bits) [ -z "$given" ] || wanted+=("$flag" "$given") ;; esac
done
[ -z "$flag" ] || [ -n "$given" ] || fail "$flag" 'needs a value'
bash setup_environment.sh ${wanted[@]+"${wanted[@]}"}

status=0 force=() begun=()
for milestone in single:test_single.py batch:test_batch.py mvp:generate_mvp.py; do
  run=${milestone%%:*} milestone=${milestone#*:}
  printf '\n== %s %s\n' "$milestone" "${force[*]-} $*"
  said=0
  .venv/bin/python "scripts/$milestone" ${force[@]+"${force[@]}"} "$@" || said=$?
  force=()
  [ "$said" = 2 ] || begun+=("$run")
  case $said in
    0) ;;
    5)
      status=5 force=(--force)
      printf '\n%s is UNDECIDED: too few cases to tell, see above. Passing it by.\n' "$milestone"
      ;;
    *) status=$said && break ;;
  esac
done
[ ${#begun[@]} = 0 ] || .venv/bin/python scripts/runs.py "${begun[@]}" || true
exit "$status"
