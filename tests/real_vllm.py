"""What tests/vllm.sh asks of real vLLM on a CPU: the contract, agreement with the local engine, a milestone
with kill -9 in between. Run by that script, in an environment that it has built (CAI_VLLM_ENV)."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import psutil  # noqa: E402
from cai.core.cli import cli  # noqa: E402
from cai.core.files import ROOT, directories  # noqa: E402
from cai.core.prompt_files import load_heldout, load_neutral, load_seeds  # noqa: E402
from cai.core.stats import wilson  # noqa: E402
from cai.models.engine import Sampling, complete_all, logprobs_all, sampling, together  # noqa: E402
from cai.models.engines import engine_of  # noqa: E402
from cai.models.loader import load  # noqa: E402
from cai.models.registry import REGISTRY  # noqa: E402
from cai.models.server_engine import FixedServers, ServerEngine  # noqa: E402
from cai.models.vllm_process import healthy, running  # noqa: E402
from cai.models.vllm_server import VllmServer, precision_of  # noqa: E402
from cai.prompts.templates import Prompter  # noqa: E402
from cai.sandbox.oracle import right  # noqa: E402

SPEC, PROMPTER = REGISTRY["sandbox"], Prompter(0, False, 3)
BATCH, MVP, LOCAL = "batch", "mvp", "mvp-local"  # runs: whose adapter is served; by vLLM; by the local engine
NATS = 2e-3  # that a token's log-probability may differ by: float32, another order of sums
# A chat token is planted into the local tokenizer, which a server elsewhere does not see.
NOT_FOR_OTHERS = "not chat_token"
failed: list[str] = []


def check(right: bool, what: str) -> None:
    print(f"  {'ok  ' if right else 'FAIL'} {what}", flush=True)
    if not right:
        failed.append(what)


def script(name: str, *args: object, **more) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / name), "--model", "sandbox", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, text=True, **more)


def texts_of(engine, prompts, how: Sampling, adapter) -> tuple[list, float]:
    began = time.perf_counter()
    found = complete_all(engine, prompts, how, range(len(prompts)), adapter)
    return found, time.perf_counter() - began


def overlap(mine: tuple[int, int], theirs: tuple[int, int]) -> bool:
    (low, high), (other_low, other_high) = wilson(*mine), wilson(*theirs)
    return low <= other_high and other_low <= high


# ---- one engine beside the other ----


def agreement() -> None:
    """Starts a server, asks it the contract, and what the local engine is asked, with the same seeds."""
    model = load(SPEC)
    local = engine_of(model)
    servers = VllmServer(SPEC, 16)
    server = ServerEngine(
        SPEC,
        servers,
        model.tokenizer,
        bits=16,
        precision=precision_of(16),
        revision=model.revision,
        device="cpu",
    )
    adapter = directories(BATCH)[1]
    for engine in (local, server):
        engine.load_adapter(adapter, "trained")
    began = time.perf_counter()
    together([server.choose("A or B?", (" A", " B"))])
    print(f"  up and checked in {time.perf_counter() - began:.0f} s: {servers.url}", flush=True)
    try:
        contract(servers.url)
        instructions = [p.instruction for p in load_heldout(Path(SPEC.heldout))]
        instructions += [s.instruction for s in load_seeds(Path(SPEC.seeds))]
        for name in (None, "trained"):
            compare(local, server, instructions, name)
        again(server, servers.url, model, instructions)
    finally:
        server.release()
    check(running() is None, "all of the server's processes are gone")


def contract(url: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "tests/models/test_engine_contract.py"]
    env = os.environ | {"CAI_TEST_SERVER": url}
    done = subprocess.run([*command, "-k", f"server and {NOT_FOR_OTHERS}"], cwd=ROOT, env=env)
    check(done.returncode == 0, "the contract tests of the server engine")


def compare(local, server, instructions: list[str], adapter: str | None) -> None:
    print(f"\n{adapter or 'base model'}: {len(instructions)} prompts", flush=True)
    prompts = [PROMPTER.answer(text) for text in instructions]
    drawn = sampling(SPEC, "answer")
    greedy = Sampling(0.0, drawn.max_tokens, drawn.stop)

    mine, seconds = texts_of(local, prompts, greedy, adapter)
    theirs, more = texts_of(server, prompts, greedy, adapter)
    same = sum(a == b for a, b in zip(mine, theirs, strict=True))
    print(
        f"  greedy: {len(prompts) / seconds:.0f} prompts/s in this process, {len(prompts) / more:.0f} by vLLM"
    )
    check(same >= 0.99 * len(prompts), f"greedy texts equal: {same} of {len(prompts)}")

    mine, _ = texts_of(local, prompts, drawn, adapter)
    theirs, _ = texts_of(server, prompts, drawn, adapter)
    equal = sum(a.text == b.text for a, b in zip(mine, theirs, strict=True))
    print(f"  sampled: {equal} of {len(prompts)} happen to be the same text")
    known = [i for i, text in enumerate(instructions) if right(text, mine[i].text) is not None]
    good = [sum(right(instructions[i], found[i].text) for i in known) for found in (mine, theirs)]
    says = f"right answers {good[0]} and {good[1]} of {len(known)}"
    check(overlap((good[0], len(known)), (good[1], len(known))), says)
    ends = [Counter(c.ended_by or c.finish_reason for c in found) for found in (mine, theirs)]
    for end in sorted(ends[0] | ends[1]):
        counts = [e[end] for e in ends]
        check(
            overlap((counts[0], len(mine)), (counts[1], len(mine))),
            f"ended by {end!r}: {counts[0]} and {counts[1]}",
        )
    lengths = [sum(c.tokens for c in found) / len(found) for found in (mine, theirs)]
    check(abs(lengths[0] / lengths[1] - 1) < 0.1, f"tokens a text {lengths[0]:.2f} and {lengths[1]:.2f}")

    texts = [f" {c.text}{local.end_of_text}" for c in mine]
    texts += load_neutral(Path(SPEC.neutral))
    heads = [*prompts, *["Passage:"] * (len(texts) - len(prompts))]
    pairs = zip(
        logprobs_all(local, heads, texts, adapter), logprobs_all(server, heads, texts, adapter), strict=True
    )
    apart = [abs(a - b) for x, y in pairs for a, b in zip(x.tokens, y.tokens, strict=True)]
    check(max(apart) < NATS, f"log-probabilities of {len(apart)} tokens: at most {max(apart):.1e} nats apart")
    chosen = [together([e.choose(p, (" A", " B"), adapter) for p in prompts]) for e in (local, server)]
    apart = [abs(a[k] - b[k]) for a, b in zip(*chosen, strict=True) for k in a]
    check(max(apart) < NATS, f"choices: at most {max(apart):.1e} nats apart")


def again(server, url: str, model, instructions: list[str]) -> None:
    """The same requests in another order, half as many at once: batch invariance is not promised on a CPU."""
    prompts = [PROMPTER.answer(text) for text in instructions]
    order = list(range(len(prompts)))
    random.Random(0).shuffle(order)
    how = sampling(SPEC, "answer")
    first = complete_all(server, prompts, how, range(len(prompts)))
    own = {"bits": 16, "precision": precision_of(16), "revision": model.revision, "device": "cpu"}
    other = ServerEngine(SPEC, FixedServers([url]), model.tokenizer, **own)
    half = len(order) // 2
    found = {}
    for part in (order[:half], order[half:]):
        found |= dict(zip(part, complete_all(other, [prompts[i] for i in part], how, part), strict=True))
    same = sum(first[i].text == found[i].text for i in order)
    print("\n--deterministic: vLLM has no batch-invariant kernels for CPUs (refused with a sentence)")
    print(f"  without it, in another order and in other batches: {same} of {len(order)} texts are the same")


# ---- a milestone ----


def milestone(examples: int, seed: int) -> None:
    """M2 through a server: its client is killed twice, it once; then M2 by the local engine."""
    said = directories("x")[2] / "real-vllm-m2.txt"
    said.parent.mkdir(parents=True, exist_ok=True)
    flags = ("--limit", examples, "--seed", seed, "--force", "--engine")
    records = directories(MVP)[0] / "records.jsonl"
    rng = random.Random(seed)
    with open(said, "a") as out:

        def begin(run: str, engine: str) -> subprocess.Popen:
            return script("generate_mvp.py", "--run", run, *flags, engine, stdout=out, stderr=out)

        process = begin(MVP, "vllm")
        for kill, share in (("client", 0.25), ("server", 0.5), ("client", 0.75)):
            wanted = int(examples * (share + rng.uniform(-0.1, 0.1)))
            while process.poll() is None and not (lines(records) >= wanted and answers()):
                time.sleep(0.05)
            if process.poll() is not None:
                check(False, f"M2 ended before it was killed, with status {process.returncode}: see {said}")
                return
            if kill == "client":
                process.send_signal(signal.SIGKILL)
                process.wait()
                process = begin(MVP, "vllm")
            else:  # the run has another one started
                watchdog = psutil.Process(running()["pid"])
                [server] = [p for p in watchdog.children() if "--port" in p.cmdline()]
                server.send_signal(signal.SIGKILL)
                psutil.wait_procs([watchdog], timeout=60)
            print(f"  killed the {kill} at {lines(records)} records", flush=True)
        status = process.wait()
        left = running()
        local = begin(LOCAL, "local").wait()
    rows = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    check(len({r["id"] for r in rows}) == len(rows), f"{len(rows)} records, none twice")
    engines = Counter(r["engine"] for r in rows)
    check(set(engines) == {"vllm"}, f"every record says its engine: {dict(engines)}")
    check(left is None, "no server is left")
    words = {0: "GO", 3: "NO-GO", 5: "UNDECIDED"}
    check(status in words and local in words, f"both runs end in a decision, not with {status} and {local}")
    same_measures(words.get(status), words.get(local))


def same_measures(decision: str | None, locally: str | None) -> None:
    """Other texts, drawn from the same distribution: as many are kept. What training makes of them varies by
    more than the intervals of one run, as two seeds do: it is said, for a person to judge."""
    print(f"  M2 ends in {decision}, locally in {locally}")
    gates = []
    for run in (MVP, LOCAL):
        manifest = json.loads((directories(run)[0] / "run.json").read_text(encoding="utf-8"))
        text = (directories(run)[0] / "records.jsonl").read_text(encoding="utf-8")
        kept = [json.loads(line)["kept"] for line in text.splitlines()]
        print(f"  {run}: kept {sum(kept)} of {len(kept)}; {manifest['pairs']['count']} pairs")
        gates.append(((sum(kept), len(kept)), manifest["gate"]["criteria"]))
    (mine, criteria), (theirs, others) = gates
    check(overlap(mine, theirs), "examples kept")
    for one, other in zip(criteria, others, strict=True):
        about = f"{one['measured']}; locally {other['measured'].rpartition(': ')[2]}"
        print(f"    {about}")


def answers() -> bool:
    state = running()
    return state is not None and healthy(state["url"])


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument("what", choices=("agreement", "milestone"))
    flags.add_argument("--examples", type=int, default=200)
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args()
    agreement() if args.what == "agreement" else milestone(args.examples, args.seed)
    for what in failed:
        print(f"FAILED: {what}")
    return int(bool(failed))


if __name__ == "__main__":
    cli(main)
