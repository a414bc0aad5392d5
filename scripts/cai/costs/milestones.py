"""Forecasts of the milestones from their flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from cai.core.ledger import read_ledger
from cai.core.run import read_manifest
from cai.costs import forecast as costs
from cai.generation import guard
from cai.models.device import hourly_rate, this_device
from cai.models.registry import ModelSpec, choose
from cai.training.settings import PASSES, default_steps

FULL_EXAMPLES, FULL_PRINCIPLES = 5000, 1  # milestone 3's defaults
CPU_BILLIONS = 3.2  # parameters of the largest model that anybody would run on a CPU
A100 = "one A100 80GB"
PAIRS_AN_EXAMPLE = 0.8  # to train on, revisions and anchors; assumed, on the high side, until measured


def forecast(args: argparse.Namespace, steps: int) -> costs.Forecast:
    """What a milestone of these flags will take, from the last measured rates."""
    spec = spec_of(args)
    ledger = read_ledger()
    device = device_of(spec, ledger)
    own = {"generated": not args.source, "judge": not args.no_judge, "guard": guard_of(args, device)}
    return costs.forecast(
        spec, args.bits or spec.bits, args.limit, principles=args.principles, steps=steps,
        ledger=ledger, hourly_rate=hourly_rate(args.hourly_rate, device), device=device, **own,
    )  # fmt: skip


def full(args: argparse.Namespace, measured_in: str) -> tuple[costs.Forecast, str]:
    """(forecast of milestone 3 with its training and evaluation, how the training's steps were reckoned): two
    passes over as many pairs as the yield of the run `measured_in` promises."""

    spec, made = spec_of(args), read_manifest(measured_in) or {}
    pairs, examples = made.get("pairs"), made.get("counts", {}).get("records")
    each, source = PAIRS_AN_EXAMPLE, "assumed"
    if made.get("model") == spec.name and pairs and examples:
        each = (pairs["count"] - pairs["held_out"]) / examples
        source = f"measured in run {measured_in}, n {examples}"
    expected = round(each * args.limit)
    steps = default_steps(expected, spec.batch_size * spec.gradient_accumulation)
    how = (
        f"training: {steps:,} steps, {PASSES} passes over about {expected:,} pairs, "
        f"{each:.2f} an example ({source})"
    )
    return forecast(args, steps), how


def after_mvp(args: argparse.Namespace) -> str:
    """What milestone 3 would take with its defaults, once the run of milestone 2 with these flags is done."""
    own = {"limit": FULL_EXAMPLES, "principles": FULL_PRINCIPLES, "guard": "auto"}
    ahead, how = full(argparse.Namespace(**vars(args) | own | {"source": None, "no_judge": False}), args.run)
    return f"\nnext, milestone 3 (generate_full.py, train_dpo.py, evaluate.py)\n{ahead.render()}\n{how}"


def spec_of(args: argparse.Namespace) -> ModelSpec:
    return choose(args.model)[0]


def device_of(spec: ModelSpec, ledger: Sequence[dict[str, Any]]) -> str:
    """What a forecast is for: this machine's GPU; without one its CPU, where the model is small enough for
    that, else where the model has run before, else an A100."""
    here = this_device()
    if here != "cpu" or spec.parameters <= CPU_BILLIONS:
        return here
    return next((r["device"] for r in reversed(ledger) if r.get("model") == spec.name), None) or A100


def guard_of(args: argparse.Namespace, device: str) -> ModelSpec | None:
    """The guard that --guard means on a device, None where the script has no such flag."""
    return guard.guard_spec(getattr(args, "guard", "none"), device)
