"""How often each step of a piece of work happens, and with which weights: what a forecast multiplies rates
by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

# step -> what its rate is counted by. One critique an example and principle; one comparison more, for
# helpfulness.
UNITS = {
    "download": "GB",
    "installing": "environment",
    "loading": "load",
    "instructions": "instruction",
    "answer": "example",
    "critique": "critique",
    "revision": "example",
    "judge": "comparison",
    "guard": "example",
    "training": "step",
    "evaluation": "evaluation",
}
PER_EXAMPLE = ("answer", "critique", "revision", "judge", "guard")
SERVER = "server"  # somebody else's
GENERATING = ("instructions", *PER_EXAMPLE)
SERVED = (*GENERATING, "evaluation")  # what an engine does; training is always this process's
WORDS = {"local": {4: "NF4", 8: "8 bits", 16: "16 bits"}, "vllm": {4: "4 bits", 8: "FP8", 16: "16 bits"}}


class Weights(NamedTuple):
    """Who holds a model's weights ("local"; "vllm", a server that we start; "server", somebody else's), and
    in how many bits."""

    engine: str
    bits: int

    def __str__(self) -> str:
        words = WORDS["local" if self.engine == "local" else "vllm"][self.bits]
        return f"{'vLLM' if self.engine == 'vllm' else self.engine} {words}"


Units = Mapping[Weights, Mapping[str, float]]  # weights -> step -> how many units of it


def local(bits: int, units: Mapping[str, float]) -> dict[Weights, dict[str, float]]:
    """All of it by the model in this process."""
    return {Weights("local", bits): dict(units)}


def multiple(step: str, principles: int) -> int:
    """Units of a step for one example."""
    return {"critique": principles, "judge": principles + 1}.get(step, 1)


def milestone_units(
    examples: int,
    *,
    principles: int,
    steps: int,
    generated: bool = True,
    judge: bool = True,
    guard: bool = False,
) -> dict[str, float]:
    """How often each step of a milestone happens. steps: of training; generated: the model writes its own
    instructions; judge, guard: whether there is one."""
    units = {
        "loading": 1,
        "instructions": examples * generated,
        **{s: examples * multiple(s, principles) for s in PER_EXAMPLE},
        "training": steps,
        "evaluation": 1,
    }
    return units | {"judge": units["judge"] * judge, "guard": units["guard"] * guard}


def add_units(parts: Iterable[Units]) -> dict[Weights, dict[str, float]]:
    total: dict[Weights, dict[str, float]] = {}
    for part in parts:
        for weights, some in part.items():
            of = total.setdefault(weights, {})
            for step, n in some.items():
                of[step] = of.get(step, 0) + n
    return total


def on_server(units: Units, weights: Weights) -> dict[Weights, dict[str, float]]:
    """The same work where a server generates and evaluates. A training needs the GPU's memory and a model of
    its own, so ours is started again after each; its first start is once for all
    (engine_choice.with_server)."""
    served: dict[str, float] = {}
    rest: dict[Weights, dict[str, float]] = {}
    for held, some in units.items():
        for step in SERVED:
            if n := some.get(step):
                served[step] = served.get(step, 0) + n
        if steps := some.get("training"):
            rest[held] = {"loading": some["loading"], "training": steps}
            if weights.engine == "vllm":
                served["loading"] = served.get("loading", 0) + some["loading"]
    return ({weights: served} if served else {}) | rest
