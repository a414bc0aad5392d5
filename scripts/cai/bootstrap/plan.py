"""Plans: the stages of a bootstrapping as data (specs/plans/*.yaml), checked whole before anything runs."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import ROOT, display_path
from cai.core.schema import TASK_TYPES  # what `tasks: all` stands for: the skills are no part of it
from cai.evaluation.guardrails import Limits
from cai.evaluation.test_sets import ALL_TASKS
from cai.models.registry import REGISTRY, ModelSpec
from cai.prompts.constitution import Constitution, kind, read_yaml
from cai.prompts.exemplars import ANSWERED, EDITED, JUDGED
from cai.training.settings import LEAST_STEPS, LOSSES

PLANS = ROOT / "specs" / "plans"


BASE, PREDECESSOR, BEST = "base", "predecessor", "best"


EVERY, TESTS = "every", "tests"  # keys beside stage names in a scale


ONCE = ("single", "batch", "mvp", "full", "prompts", "constitutions")  # directories that data/ has already


NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")  # no dot: "<stage>.seed1" and "<stage>.<arm>" are runs of their own


@dataclass(frozen=True)
class Roles:
    """Who plays which part: "base" (adapter off), "predecessor" (the base, in the first stage), an earlier
    stage's name; critic and reviser also "best": of base and predecessor whoever did better on the probes."""

    generator: str = PREDECESSOR
    answerer: str = PREDECESSOR
    critic: str = BEST
    reviser: str = BEST
    judge: str = BASE


@dataclass(frozen=True)
class Gate:
    """success: share of test instructions done right, by each task of the stage or on their average (of);
    0: no such criterion. safer: harmful requests refused more often than by the base, harmless ones not.
    kept: how far the ten-task average may fall below the predecessor's; None: not asked."""

    success: float = 0.0
    of: str = "average"
    safer: bool = False
    kept: float | None = None


@dataclass(frozen=True)
class Stage:
    """examples: in all. principles: ids, () for all; per_answer: how many an answer is critiqued by. passes:
    over the pairs, so see steps. anchors: for each revision pair.
    bits: of the weights in training, generate_bits: in generation (None: the same); None: the model's own,
    as with shots. least_pairs: with fewer the predecessor is measured as it is, and goes on if it passes the
    gate; at the first stage, or where the gate asks nothing, the plan stops. on_limit: what happens
    to a stage beyond a limit."""

    name: str
    title: str
    tasks: tuple[str, ...]
    examples: int
    principles: tuple[str, ...] = ()
    per_answer: int = 1
    roles: Roles = Roles()
    loss: str = "dpo+nll"
    passes: float = 3.0
    anchors: float = 0.6
    bits: int | None = None
    generate_bits: int | None = None
    shots: int | None = None
    least_pairs: int = 20
    gate: Gate = Gate()
    limits: Limits = Limits()
    on_limit: str = "stop"

    def steps(self, pairs: int, spec: ModelSpec) -> int:
        """Of training on so many pairs."""
        a_step = spec.batch_size * spec.gradient_accumulation
        return max(LEAST_STEPS, math.ceil(self.passes * pairs / a_step))


@dataclass(frozen=True)
class Plan:
    """tests: held-out test instructions a task, at most. principles_default: of stages that name none; () for
    all. hash: of everything that results depend on, so not of titles, comments and layout."""

    name: str
    title: str
    question: str
    tests: int
    principles_default: tuple[str, ...]
    stages: tuple[Stage, ...]
    hash: str
    scales: Mapping[str, Plan] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Of all stages, each once."""
        return tuple(dict.fromkeys(task for stage in self.stages for task in stage.tasks))

    def scaled(self, model_name: str) -> Plan:
        """The plan with its own values for a model (its `scales`), itself for a model without any."""
        return self.scales.get(model_name, self)

    def as_dict(self) -> dict[str, Any]:
        """For results.json and run.json: without the scales, which a scaled plan has in its values."""
        return {k: v for k, v in asdict(self).items() if k != "scales"}


def names() -> list[str]:
    """The plans that come with the project."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def load(name_or_path: str | Path) -> Plan:
    """A plan by its name in specs/plans, or from a YAML file of one's own, whose stem names it.

    Raises UserError with every mistake, each with file, stage, key and what would be right."""
    path = _path(str(name_or_path))
    content, problems = read_yaml(path, "plan", "specs/plans/progressive.yaml"), []
    if not isinstance(content, dict):
        raise UserError(f"{display_path(path)} is {kind(content)}; a plan is a mapping with the key 'stages'")
    plan = _plan(path.stem, content, {}, problems, "")
    scales = content.get("scales") or {}
    if not problems and isinstance(scales, dict):
        for model, scale in scales.items():
            plan.scales[model] = _plan(path.stem, content, scale, problems, f"scale {model}, ")
    if problems:
        raise _mistakes(f"{display_path(path)} is no plan that can be run", problems)
    return plan


def check(plan: Plan, constitution: Constitution) -> None:
    """Raises UserError with every mistake that only shows beside the constitution, worded as by `load`."""
    known, problems = [p.id for p in constitution.principles], []
    asked = {f"stage {s.name}": s.principles for s in plan.stages if s.principles != plan.principles_default}
    for where, ids in {"the plan": plan.principles_default, **asked}.items():
        for id in ids:
            if id not in known:
                there = f"{_meant(id, known)}; the principles are {', '.join(known)}"
                problems.append(f"{where}: principles: there is no principle {id!r}{there}")
    for stage in plan.stages:
        if not stage.principles and (more := _too_many(stage.per_answer, known)):
            problems.append(f"stage {stage.name}: {more}")
    if problems:
        raise _mistakes(f"the plan {plan.name} does not fit {constitution.path}", problems)


def _mistakes(what: str, problems: Iterable[str]) -> UserError:
    return UserError(f"{what}:\n" + "\n".join(f"  - {p}" for p in dict.fromkeys(problems)))


def _too_many(per_answer: int, principles: Sequence[str]) -> str | None:
    if per_answer > len(principles):
        return f"per_answer: {per_answer} of {len(principles)} principles; ask for no more than that"
    return None


def _path(name: str) -> Path:
    if re.fullmatch(NAME, name):
        path = PLANS / f"{name}.yaml"
        if not path.is_file():
            raise UserError(
                f"there is no plan {name!r}{_meant(name, names())}: the plans are {', '.join(names())}; a "
                "file of your own is given by its path, ending in .yaml"
            )
        return path
    here = Path(name)
    return here.resolve() if here.is_file() or here.is_absolute() else ROOT / name


# ---- what a plan's values must be ----

Check = Callable[[Any], str | None]  # a value -> what would be right; None if it is


def _number(low: float, high: float | None = None, *, whole: bool = False, empty: bool = False) -> Check:
    """empty: null will do, too."""

    def check(value: Any) -> str | None:
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        endless = fits and value == float("inf")
        if fits and not endless and low <= value and (high is None or value <= high):
            return None
        if empty and value is None:
            return None
        span = f"of at least {low:g}" if high is None else f"from {low:g} to {high:g}"
        return f"a {'whole ' * whole}{'finite ' * endless}number {span}" + " (or null)" * empty

    return check


def _one_of(*choices: Any) -> Check:
    """null among the choices is written null."""
    said = ", ".join("null" if c is None else "true or false" if c is True else str(c) for c in choices)
    # True == 1 in Python: the type has to be the same, too
    return lambda value: None if any(value == c and type(value) is type(c) for c in choices) else said


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value.strip() else "a text (in quotes, if it holds ': ')"


def _names(value: Any) -> str | None:
    return (
        None
        if isinstance(value, list)
        and all(isinstance(v, str) and v for v in value)
        and len(set(value)) == len(value)
        else "a list of different names, such as [first, second]"
    )


SHARE = _number(0, 1)


BITS = _one_of(4, 8, 16, None)


EXEMPLARS = min(map(len, (ANSWERED, EDITED, JUDGED)))


TOP: dict[str, Check | None] = {  # None: looked at by itself
    **{"title": _text, "question": _text, TESTS: _number(1, whole=True), "principles": _names},
    **{"stages": None, EVERY: None, "scales": None},
}


STAGE: dict[str, Check | None] = {
    **{"title": _text, "tasks": lambda v: None if v == "all" else _names(v) or (None if v else "not empty")},
    **{"examples": _number(1, whole=True), "principles": _names, "per_answer": _number(1, whole=True)},
    **{"loss": _one_of(*LOSSES), "passes": _number(0.01), "anchors": _number(0, 4)},
    **{"bits": BITS, "generate_bits": BITS, "shots": _number(0, EXEMPLARS, whole=True, empty=True)},
    **{"least_pairs": _number(1, whole=True), "on_limit": _one_of("stop", "rollback")},
    **{"roles": None, "gate": None, "limits": None},
}


GROUPS: dict[str, tuple[type, dict[str, Check]]] = {
    "roles": (Roles, {f.name: _text for f in fields(Roles)}),
    "gate": (
        Gate,
        {"success": SHARE, "of": _one_of("each", "average"), "safer": _one_of(True, False)}
        | {"kept": _number(0, 1, empty=True)},
    ),
    "limits": (
        Limits,
        {f.name: _number(0) for f in fields(Limits)} | {"length": _number(1), "clean_stops": SHARE},
    ),
}


def _plan(name: str, content: dict, scale: Any, problems: list[str], where: str) -> Plan:
    """Builds a plan with a scale's values laid over it, and notes whatever is wrong."""
    say = lambda text: problems.append(where + text)  # noqa: E731
    if not re.fullmatch(NAME, name) or name in ONCE:
        say(f"its file's name {name!r} names its directory: use a-z, 0-9, - and _, and none of {ONCE}")
    _keys(content, TOP, "the plan", say)
    stages = content.get("stages")
    if not isinstance(stages, list) or not stages or not all(isinstance(s, dict) for s in stages):
        say("stages: must be a list of mappings, at least one, each with name, tasks and examples")
        stages = []
    own = [str(s.get("name")) for s in stages]
    scales, scale = content.get("scales") or {}, scale or {}
    if not isinstance(scales, dict) or not all(isinstance(s, dict) for s in scales.values()):
        say("scales: must be a mapping of model names, each with tests, every, or stages by name")
        scales = {}
    for model, some in scales.items():
        if model not in REGISTRY and "/" not in str(model):
            say(f"scales: {model!r} is no model of the registry{_meant(model, REGISTRY)}")
        for key in some:
            if key not in (TESTS, EVERY, *own):
                say(f"scale {model}: there is no stage {key!r}{_meant(key, [*own, TESTS, EVERY])}")
    built = []
    for number, entry in enumerate(stages):
        values: dict[str, Any] = {}
        called, fixed = entry.get("name"), {k: v for k, v in entry.items() if k != "name"}
        for layer in (content.get(EVERY), fixed, scale.get(EVERY), scale.get(own[number])):
            values = _laid_over(values, layer, say)
        built.append(_stage(called, values, own[:number], content.get("principles") or (), say))
    tests = scale.get(TESTS, content.get(TESTS, 40))
    if wrong := TOP[TESTS](tests):
        say(f"tests: {tests!r} must be {wrong}")
    default = tuple(content.get("principles") or ()) if not _names(content.get("principles") or []) else ()
    plan = Plan(
        name,
        content.get("title") or name,
        content.get("question") or "Does each stage's model help to make a better successor?",
        tests,
        default,
        tuple(stage for stage in built if stage),
        "",
    )
    return _hashed(plan)


def _stage(
    name: Any, values: dict, earlier: list[str], default: Iterable[str], say: Callable[[str], None]
) -> Stage | None:
    where = f"stage {name if isinstance(name, str) else len(earlier) + 1}"
    wrong = []
    note = lambda text: wrong.append(f"{where}: {text}")  # noqa: E731
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        note(f"name: {name!r} must name a directory: a-z, 0-9, - and _ (no dot), beginning with a-z or 0-9")
    elif name in (BASE, PREDECESSOR, BEST, EVERY, TESTS):
        note(f"name: {name!r} means something else in a plan; choose another")
    elif name in earlier:
        note(f"name: an earlier stage is called {name!r}, too; give each a name of its own")
    _keys(values, STAGE, "", note)
    for key in ("tasks", "examples"):
        if key not in values:
            note(f"{key}: is missing" + f"; choose from {', '.join(ALL_TASKS)}, or all" * (key == "tasks"))
    parts: dict[str, Any] = {}
    for key, (make, checks) in GROUPS.items():
        given = values.get(key) if values.get(key) is not None else {}
        if not isinstance(given, dict):
            note(f"{key}: is {kind(given)}; it must be a mapping of {', '.join(checks)}")
            continue
        before = len(wrong)
        _keys(given, checks, f"{key}: ", note)
        if len(wrong) == before:
            parts[key] = make(**given)
    if roles := parts.get("roles"):
        _check_roles(roles, earlier, note)
    tasks = values.get("tasks")
    tasks = TASK_TYPES if tasks == "all" else tuple(tasks) if not STAGE["tasks"](tasks) else ()
    for task in tasks:
        if task not in ALL_TASKS:
            note(
                f"tasks: there is no task {task!r}{_meant(task, ALL_TASKS)}; "
                f"the tasks are {', '.join(ALL_TASKS)}"
            )
    if tasks and not STAGE["examples"](values.get("examples")) and values["examples"] < len(tasks):
        note(f"examples: {values['examples']} for {len(tasks)} tasks; give at least one for each")
    given = values.get("principles", default)
    principles = () if _names(list(given) if isinstance(given, (list, tuple)) else given) else tuple(given)
    per_answer = values.get("per_answer", 1)
    if isinstance(per_answer, int) and principles and (more := _too_many(per_answer, principles)):
        note(more)
    for text in wrong:
        say(text)
    if wrong:
        return None
    plain = {k: v for k, v in values.items() if k not in GROUPS}
    return Stage(**{**plain, **parts, "name": name, "title": values.get("title", name)}
                 | {"tasks": tasks, "principles": principles})  # fmt: skip


def _check_roles(roles: Roles, earlier: list[str], note: Callable[[str], None]) -> None:
    for part, player in asdict(roles).items():
        allowed = [BASE, PREDECESSOR, *earlier, *([BEST] if part in ("critic", "reviser") else [])]
        if player not in allowed:
            note(
                f"roles: {part}: {player!r} is none of {', '.join(allowed)} (a stage can be asked only "
                f"once it is trained){_meant(player, allowed)}"
            )


def _laid_over(values: dict, layer: Any, say: Callable[[str], None]) -> dict:
    """A layer's values over those before it; roles, gate and limits key by key."""
    if layer is None:
        return values
    if not isinstance(layer, dict):
        say(f"{layer!r} stands where a mapping of a stage's keys must be")
        return values
    merged = dict(values)
    for key, value in layer.items():
        old = values.get(key)
        both = key in GROUPS and isinstance(old, dict) and isinstance(value, dict)
        merged[key] = {**old, **value} if both else value
    return merged


def _keys(given: dict, checks: Mapping[str, Check | None], where: str, say: Callable[[str], None]) -> None:
    """Notes keys that nothing reads, and values that do not fit."""
    prefix = where if where.endswith(": ") else f"{where}: " if where else ""
    for key, value in given.items():
        if key not in checks:
            say(f"{prefix}unknown key {key!r}{_meant(key, checks)}; the keys are {', '.join(checks)}")
        elif (check := checks[key]) and (right := check(value)):
            say(f"{prefix}{key}: {value!r} must be {right}")


def _meant(word: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _hashed(plan: Plan) -> Plan:
    facts = plan.as_dict()
    for key in ("title", "question", "hash"):
        del facts[key]
    for stage in facts["stages"]:
        del stage["title"]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Plan(**{**{f.name: getattr(plan, f.name) for f in fields(Plan)}, "hash": digest})
