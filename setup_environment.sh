#!/usr/bin/env bash
# Makes this machine ready: .venv with the pinned packages, and a check of disk and GPU memory against the model.
#
#   bash setup_environment.sh                        what this machine's default model needs
#   bash setup_environment.sh --model Qwen/Qwen2.5-7B --bits 16
#   bash setup_environment.sh --check                the table only, installs nothing
#
# --model NAME  the model to check for (default: Qwen/Qwen2.5-32B on a CUDA GPU, sandbox elsewhere)
# --bits N      4, 8 or 16 (default: the model's own: 4 for the 32B, 16 for smaller ones)
# --dev         pytest and ruff as well
# --check       look, do not install
# PYTHON=...    the Python to build .venv with (default: the first of python3, python3.12, python3.13, python3.11 that fits)
# VENV_DIR=...  a directory of a local disk in which .venv is built; .venv here is then a link. Of itself it does so below
#               the home directory where the checkout lies on a network disk, such as RunPod's network volumes: tens of
#               thousands of small files are slow there. What a pod loses when it stops is built again, in minutes.
#
# Quick when nothing has changed; safe to repeat after an interruption. Exit status 2 with the reason when it cannot be done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# An activated .venv must not be what builds .venv.
for lies in "$PWD/.venv" "$(readlink .venv || echo "$PWD/.venv")"; do
  export PATH="${PATH//"$lies/bin:"/}"
done
export PIP_USER=0
CPU_INDEX=https://download.pytorch.org/whl/cpu
LOG=.venv/setup.log
MARKER=.venv/.installing

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' setup_environment.sh; }

dev='' check='' wanted=()
while [ $# -gt 0 ]; do
  case $1 in
    --model | --bits)
      [ $# -ge 2 ] || fail "$1 needs a value"
      wanted+=("$1" "$2")
      shift
      ;;
    --dev) dev=yes ;;
    --check) check=yes ;;
    -h | --help) usage; exit 0 ;;
    *) fail "unknown argument $1: see bash setup_environment.sh --help" ;;
  esac
  shift
done

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; }

find_python() {
  local candidate found=() candidates=(python3 python3.12 python3.13 python3.11)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON") # a path may hold spaces
  for candidate in "${candidates[@]}"; do
    command -v "$candidate" >/dev/null || continue
    if fits "$candidate"; then
      command -v "$candidate"
      return
    fi
    found+=("$candidate ($("$candidate" --version 2>&1 | head -n 1))")
  done
  [ -z "${PYTHON:-}" ] || [ -n "${found[*]}" ] || fail "PYTHON=$PYTHON is no program that can be run: name another"
  fail "Python 3.11 to 3.14 is needed; found: ${found[*]:-none}. Install one (Debian, Ubuntu: apt-get install" \
    "python3.11 python3.11-venv; macOS: brew install python@3.12), or name yours: PYTHON=/path/to/python"
}

# A .venv that an interruption left half made is built again.
venv_works() {
  [ ! -e "$MARKER" ] && [ -x .venv/bin/python ] && fits .venv/bin/python &&
    .venv/bin/python -m pip --version >/dev/null 2>&1
}

hardware() {
  local python=$1
  shift
  PYTHONPATH=scripts "$python" -m cai.preflight.hardware ${wanted[@]+"${wanted[@]}"} "$@"
}

# Makes .venv a link to where the environment is to lie, if that is elsewhere; prints what venv is to build.
place_venv() {
  local place
  place=$(hardware "$1" --environment)
  if [ "$place" = .venv ]; then
    [ ! -L .venv ] || rm .venv
  elif [ -e .venv ] && [ ! -L .venv ]; then
    fail ".venv is a directory here, but the environment is to lie in $place: move it away (mv .venv .venv-old)," \
      "or keep it here with VENV_DIR=."
  else
    mkdir -p "$place" && ln -sfn "$place" .venv || fail "$place cannot be made (see above): name another VENV_DIR"
  fi
  printf '%s\n' "$place"
}

if venv_works; then
  python=.venv/bin/python
  for asked in PYTHON VENV_DIR; do
    [ -z "${!asked:-}" ] || printf '%s is not asked: .venv is there already (move it away to build it anew)\n' "$asked"
  done
else
  [ ! -L .venv ] || [ -e .venv ] ||
    printf '.venv was in %s, which is gone, as a container'"'"'s disk is when its pod stops: set-up builds it again\n' "$(readlink .venv)"
  python=$(find_python)
fi
kind=$(hardware "$python" --kind)

if [ -n "$check" ]; then
  hardware "$python"
  exit
fi

key() { { printf '%s\n' "$kind" "$("$python" --version)"; cat "$@"; } | cksum; }

# The marker outlives a kill: what pip was writing then may look installed and not be whole.
install() {
  local status=0
  : >"$MARKER"
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off "$@" >>"$LOG" 2>&1 || status=$?
  rm -f "$MARKER"
  return "$status"
}

must_install() {
  local what=$1
  shift
  printf 'installing %s ...\n' "$what"
  install "$@" && return
  grep -E '^ERROR|[Nn]o space|[Ee]rror:' "$LOG" | tail -n 5 >&2 || true
  fail "pip could not install $what (whole log: $LOG). Check the network and the free disk, then run this again:" \
    "it goes on from here"
}

stamp=.venv/.installed dev_stamp=.venv/.installed-dev
sets=(requirements.txt requirements-cpu.txt requirements-cuda12.txt)
runtime=$(key "${sets[@]}")
if [ "$python" != .venv/bin/python ] || [ "$(cat "$stamp" 2>/dev/null)" != "$runtime" ] ||
  ! hardware "$python" --versions "$kind"; then
  hardware "$python" --before-install "$kind" || fail "this machine cannot take it, for the reason above"
  # The other kind's torch satisfies the same pin, so a .venv that has moved between machines is built anew.
  if ! venv_works || ! hardware .venv/bin/python --torch-suits "$kind"; then
    base=$(find_python)
    place=$(place_venv "$base")
    [ "$place" = .venv ] || echo "the environment goes where many small files are quick; .venv will be a link to it"
    echo "making $place with $base"
    "$base" -m venv --clear "$place" >&2 ||
      fail "$base cannot make a virtual environment here (see above); on Debian and Ubuntu: apt-get install python3-venv"
    python=.venv/bin/python
    runtime=$(key "${sets[@]}")
  fi
  rm -f "$stamp"
  : >"$LOG"
  if [ "$kind" != cpu ]; then
    file=requirements.txt runs='CUDA 13 (580 or newer)'
    [ "$kind" = cuda ] || file=requirements-cuda12.txt runs='CUDA 12 (525 or newer)'
    must_install "the CUDA set of $file (several GB, some minutes)" -r "$file"
    env -u CUDA_VISIBLE_DEVICES .venv/bin/python -c 'import torch; assert torch.cuda.is_available()' 2>>"$LOG" ||
      fail "nvidia-smi answers but torch sees no GPU ($(tail -n 1 "$LOG")): it needs a driver for $runs;" \
        "rent a machine that has one"
  else
    torch=$(grep '^torch==' requirements.txt)
    [ "$(uname -s)" = Darwin ] || torch="$torch+cpu"
    echo "installing $torch ..."
    install "$torch" || must_install "$torch from PyTorch's own index" "$torch" --extra-index-url "$CPU_INDEX"
    must_install "the CPU set" -r requirements-cpu.txt
    must_install "unsloth" --no-deps -c requirements.txt unsloth unsloth_zoo
  fi
  printf '%s\n' "$runtime" >"$stamp"
fi
if [ -n "$dev" ] && [ "$(cat "$dev_stamp" 2>/dev/null)" != "$(key requirements-dev.txt)" ]; then
  must_install "pytest and ruff" -r requirements-dev.txt
  key requirements-dev.txt >"$dev_stamp"
fi

hardware .venv/bin/python || fail "not ready: see the rows that failed"
echo "ready: source .venv/bin/activate && python scripts/test_single.py"
