#!/usr/bin/env bash
# Runs a command that may take hours, and stops the RunPod pod when it ends, so that nobody pays for an idle GPU.
#
#   bash scripts/unattended.sh bash scripts/speedrun.sh --budget 10
#   bash scripts/unattended.sh python scripts/generate_full.py --budget 30
#
# The command goes on when the connection drops. Its output and exit status go to a log under logs/ (CAI_OUTPUT/logs/),
# whose path is printed; tail -f shows it. The pod is stopped whatever the status: GO, NO-GO or an error, but not
# when this script itself is killed. A stopped pod still costs what its volume disk costs, and loses its container's
# disk: outputs and model cache belong on the volume. Exit status 2 where there is no pod to stop.
set -euo pipefail

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

case ${1:-} in
  '' | -h | --help)
    awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "${BASH_SOURCE[0]}"
    [ -n "${1:-}" ] && exit 0
    exit 2
    ;;
esac
[ -n "${RUNPOD_POD_ID:-}" ] || fail "RUNPOD_POD_ID is not set: export it (the pod's id stands on RunPod's page of it)," \
  "or, where there is no pod to stop, run the command in tmux"
command -v runpodctl >/dev/null || fail "there is no runpodctl here to stop the pod with: install it, or stop the pod by hand"
command -v "$1" >/dev/null || fail "$1 is no program that can be run (source .venv/bin/activate first?)"
runpodctl get pod "$RUNPOD_POD_ID" >/dev/null 2>&1 || runpodctl pod get "$RUNPOD_POD_ID" >/dev/null 2>&1 ||
  printf 'warning: runpodctl cannot look at pod %s, so it may not be able to stop it: see its configuration\n' \
    "$RUNPOD_POD_ID" >&2

logs=${CAI_OUTPUT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}/logs
mkdir -p "$logs"
log=$logs/unattended-$(date +%Y%m%d-%H%M%S).log
# Older and newer versions of runpodctl have the words in a different order.
nohup setsid bash -c '
  status=0
  "$@" || status=$?
  echo "exit status $status; stopping pod $RUNPOD_POD_ID"
  runpodctl stop pod "$RUNPOD_POD_ID" || runpodctl pod stop "$RUNPOD_POD_ID" ||
    echo "error: the pod could not be stopped (see above), it goes on costing: stop it by hand"
' unattended "$@" >"$log" 2>&1 </dev/null &
printf 'started; the pod is stopped when it ends. To follow it: tail -f %q; to call it off: kill -- -%s\n' "$log" "$!"
