"""The figures of benchmark.py gpu as Markdown, to be pasted into specs/gpu.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cai.core.text import format_bytes
from cai.costs.units import Weights
from cai.preflight.gpu_figures import LOCAL, SERVED, SHAPE

MISSING = "not yet measured"
CARD = 80 * 2**30  # bytes of the GPU that the specification names
ENGINES = (LOCAL, *(Weights("vllm", bits) for some in SERVED.values() for bits in some))
PACKAGES = ("torch", "transformers", "trl", "unsloth", "bitsandbytes")


def markdown(facts: Mapping[str, Any]) -> str:
    where = facts["gpu"] and f"{facts['gpu']}, driver {facts['driver']}"
    versions = ", ".join(f"{p} {facts['versions'][p]}" for p in PACKAGES if p in facts["versions"])
    lines = [
        f"### {facts['shape']} (random weights) on {where or 'a CPU'}",
        "",
        f"{facts['time'][:10]}, commit {(facts['commit'] or 'unknown')[:12]}, {versions}.",
    ]
    if not facts["gpu"]:
        lines += ["", f"No GPU here: this shows that it runs, and no speed. {SHAPE} on a GPU: {MISSING}."]
    return "\n".join([*lines, "", *_load(facts), "", *_generation(facts), "", *_training(facts)])


def _load(facts: Mapping[str, Any]) -> list[str]:
    found = facts.get("load")
    if not found:
        return [f"Load: {MISSING}."]
    weights = _bytes(found["weights_bytes"])
    return [
        f"Load in NF4: {found['load_seconds']:.0f} s from a file of {_bytes(found['checkpoint_bytes'])}; "
        f"{weights} of GPU memory. Memory moves {found['memory_rate'] / 1e9:,.0f} GB/s (a copy)."
    ]


def _generation(facts: Mapping[str, Any]) -> list[str]:
    rows = [("engine", "rows", "tokens/s", "of the bandwidth's limit", "peak memory", "start")]
    first = [("engine", "prompt tokens", "first token", "with a cached prefix")]
    for weights in ENGINES:
        found, name = facts.get(str(weights), {}), str(weights)
        start = f"{found['start_seconds']:.0f} s" if "start_seconds" in found else "-"
        for x in found.get("generation", []):
            share = f"{x['tokens_per_second'] / x['limit']:.1%}" if x["limit"] else "-"
            peak = _bytes(found.get("memory_bytes") or x["peak_bytes"])
            rows.append((name, str(x["rows"]), f"{x['tokens_per_second']:,.1f}", share, peak, start))
        if not found.get("generation"):
            why = f": {found['not_measured']}" if "not_measured" in found else ""
            rows.append((name, "-", f"{MISSING}{why}", "-", "-", start))
        if x := found.get("first_token"):
            times = (f"{x[key]:.3f} s" for key in ("new_seconds", "cached_seconds"))
            first.append((name, str(x["prompt_tokens"]), *times))
        else:
            first.append((name, "-", MISSING, "-"))
    return [*_table(rows), "", *_table(first)]


def _training(facts: Mapping[str, Any]) -> list[str]:
    found = list(facts.get("train", {}).values())
    if not found:
        return [f"DPO steps: {MISSING}."]
    rows = [("tokens a text", "pairs x accumulation", "DPO step", "peak memory")]
    for x in found:
        took = f"{x['step_seconds']:.2f} s" if x["fits"] else "does not fit"
        peak = _bytes(x["peak_bytes"]) if x["fits"] else "-"
        rows.append((str(x["tokens"]), f"{x['batch']} x {x['accumulation']}", took, peak))
    return [*_table(rows), "", _largest(found)]


def _largest(found: Sequence[Mapping[str, Any]]) -> str:
    known = [x for x in found if x["fits"] and x["peak_bytes"] is not None]
    under = [x for x in known if x["peak_bytes"] < CARD]
    if not under:
        return f"The largest setting under 80 GB: {MISSING}."
    x = max(under, key=lambda x: (x["batch"] * x["tokens"], x["tokens"]))
    return (
        f"The largest setting under 80 GB: {x['batch']} x {x['accumulation']} pairs "
        f"of {x['tokens']} tokens a text, {_bytes(x['peak_bytes'])}."
    )


def _bytes(number: float | None) -> str:
    return "-" if number is None else format_bytes(number)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
