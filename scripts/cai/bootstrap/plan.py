"""Plans: the stages of a bootstrapping as data (specs/plans/*.yaml), checked whole before anything runs."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, field_validator

from cai.core.checked import Text, YesNo, checked, distinct, meant, number, one_of, read
from cai.core.errors import UserError
from cai.core.files import ROOT, display_path
from cai.core.schema import TASK_TYPES  # what `tasks: all` stands for: the skills are no part of it
from cai.core.text import kind
from cai.core.yaml_files import read_yaml
from cai.evaluation.guardrails import Limits
from cai.evaluation.test_sets import ALL_TASKS
from cai.models.registry import REGISTRY, ModelSpec
from cai.prompts.constitution import Constitution
from cai.prompts.exemplars import ANSWERED, EDITED, JUDGED
from cai.training.settings import LEAST_STEPS, LOSSES

PLANS = ROOT / "specs" / "plans"
BASE, PREDECESSOR, BEST = "base", "predecessor", "best"
EVERY, TESTS = "every", "tests"  # keys beside stage names in a scale
PLOTS = "plots"  # a directory of the report's, beside those of stages
ONCE = ("single", "batch", "mvp", "full", "prompts", "constitutions")  # directories that data/ has already
# No dot: "<stage>.seed1" and "<stage>.<arm>" are runs of their own.
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")
EXEMPLARS = min(map(len, (ANSWERED, EDITED, JUDGED)))
OTHER_NAMES = {"math_problems": "math"}  # of tasks, in plans that were written for other programs
GROUPS = ("roles", "gate", "limits")


# ---- what a plan's values must be ----


def _player(who: str, info: ValidationInfo) -> str:
    """Who may play a part; the earlier stages are known where a file is read."""
    if info.context is None:
        return who
    part, allowed = info.field_name, [BASE, PREDECESSOR, *info.context["earlier"]]
    allowed += [BEST] * (part in ("critic", "reviser"))
    if who in allowed:
        return who
    raise ValueError(
        f"{who!r} is none of {', '.join(allowed)} (a stage can be asked only once it is trained)"
        + meant(who, allowed)
    )


def _tasks(value: Any) -> Any:
    if value == "all":
        return TASK_TYPES
    if value in ([], ()):
        raise ValueError(f"{value!r} must be not empty")
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(OTHER_NAMES.get(task, task) if isinstance(task, str) else task for task in value)


def _task(name: str) -> str:
    if name in ALL_TASKS:
        return name
    raise ValueError(
        f"there is no task {name!r}{meant(name, ALL_TASKS)}; the tasks are {', '.join(ALL_TASKS)}"
    )


def _stage_name(name: Any, info: ValidationInfo) -> Any:
    """It names a directory, and is told apart from what a plan says beside stages."""
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(
            f"{name!r} must name a directory: a-z, 0-9, - and _ (no dot), beginning with a-z or 0-9"
        )
    if name in (BASE, PREDECESSOR, BEST, EVERY, TESTS, PLOTS):
        raise ValueError(f"{name!r} means something else in a plan; choose another")
    if info.context is not None and name in info.context["earlier"]:
        raise ValueError(f"an earlier stage is called {name!r}, too; give each a name of its own")
    return name


Player = Annotated[Text, AfterValidator(_player)]
Tasks = distinct(
    Annotated[str, AfterValidator(_task)],
    BeforeValidator(_tasks),
    right=f"of {', '.join(ALL_TASKS)}; or all",
)


Count, Share, Bits = number(1, whole=True), number(0, 1), one_of(4, 8, 16, None)


@checked
class Roles:
    """Who plays which part: "base" (adapter off), "predecessor" (the base, in the first stage), an earlier
    stage's name; critic and reviser also "best": of base and predecessor whoever did better on the probes."""

    generator: Player = PREDECESSOR
    answerer: Player = PREDECESSOR
    critic: Player = BEST
    reviser: Player = BEST
    judge: Player = BASE


@checked
class Gate:
    """success: share of test instructions done right, by each task of the stage or on their average (of);
    0: no such criterion. safer: harmful requests refused more often than by the base, harmless ones not.
    kept: how far the ten-task average may fall below the predecessor's; None: not asked."""

    success: Share = 0.0
    of: one_of("each", "average") = "average"
    safer: YesNo = False
    kept: number(0, 1, empty=True) = None


@checked
class Stage:
    """examples: in all. principles: ids, () for all; per_answer: how many an answer is critiqued by. passes:
    over the pairs, see steps. anchors: for each revision pair. bits: of the weights in training,
    generate_bits: in generation (None: the same); None: the model's own, as with shots. least_pairs: with
    fewer the predecessor is measured as it is, and goes on if it passes the gate; at the first stage, or
    where the gate asks nothing, the plan stops. on_limit: what happens to a stage beyond a limit."""

    name: Annotated[str, BeforeValidator(_stage_name)]
    title: Text
    tasks: Tasks
    examples: Count
    principles: distinct() = ()
    per_answer: Count = 1
    roles: Roles = Roles()
    loss: one_of(*LOSSES) = "dpo+nll"
    passes: number(0.01) = 3.0
    anchors: number(0, 4) = 0.6
    bits: Bits = None
    generate_bits: Bits = None
    shots: number(0, EXEMPLARS, whole=True, empty=True) = None
    least_pairs: Count = 20
    gate: Gate = Gate()
    limits: Limits = Limits()
    on_limit: one_of("stop", "rollback") = "stop"

    @field_validator("examples")
    @classmethod
    def _one_a_task(cls, n: int, info: ValidationInfo) -> int:
        if n < (tasks := len(info.data.get("tasks", ()))):
            raise ValueError(f"{n} for {tasks} tasks; give at least one for each")
        return n

    @field_validator("per_answer")
    @classmethod
    def _no_more_than_there_are(cls, n: int, info: ValidationInfo) -> int:
        if (ids := info.data.get("principles")) and (more := _too_many(n, ids)):
            raise ValueError(more)
        return n

    def steps(self, pairs: int, spec: ModelSpec) -> int:
        """Of training on so many pairs."""
        a_step = spec.batch_size * spec.gradient_accumulation
        return max(LEAST_STEPS, math.ceil(self.passes * pairs / a_step))


@checked
class _Top:
    """A plan's file; stages, every and scales are looked at by themselves."""

    title: Text = ""
    question: Text = "Does each stage's model help to make a better successor?"
    tests: Count = 40
    principles: distinct() = ()
    stages: Any = None
    every: Any = None
    scales: Any = None


# ---- plans ----


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
                there = f"{meant(id, known)}; the principles are {', '.join(known)}"
                problems.append(f"{where}: principles: there is no principle {id!r}{there}")
    for stage in plan.stages:
        if not stage.principles and (more := _too_many(stage.per_answer, known)):
            problems.append(f"stage {stage.name}: per_answer: {more}")
    if problems:
        raise _mistakes(f"the plan {plan.name} does not fit {constitution.path}", problems)


def _mistakes(what: str, problems: Iterable[str]) -> UserError:
    return UserError(f"{what}:\n" + "\n".join(f"  - {p}" for p in dict.fromkeys(problems)))


def _too_many(per_answer: int, principles: Sequence[str]) -> str | None:
    if per_answer > len(principles):
        return f"{per_answer} of {len(principles)} principles; ask for no more than that"
    return None


def _path(name: str) -> Path:
    if re.fullmatch(NAME, name):
        path = PLANS / f"{name}.yaml"
        if not path.is_file():
            raise UserError(
                f"there is no plan {name!r}{meant(name, names())}: the plans are {', '.join(names())}; a "
                "file of your own is given by its path, ending in .yaml"
            )
        return path
    here = Path(name)
    return here.resolve() if here.is_file() or here.is_absolute() else ROOT / name


# ---- reading one ----


def _plan(name: str, content: dict, scale: Any, problems: list[str], where: str) -> Plan:
    """Builds a plan with a scale's values laid over it, and notes whatever is wrong."""

    def say(text: str) -> None:
        problems.append(where + text)

    if not re.fullmatch(NAME, name) or name in ONCE:
        say(f"its file's name {name!r} names its directory: use a-z, 0-9, - and _, and none of {ONCE}")
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
            say(f"scales: {model!r} is no model of the registry{meant(model, REGISTRY)}")
        for key in some:
            if key not in (TESTS, EVERY, *own):
                say(f"scale {model}: there is no stage {key!r}{meant(key, [*own, TESTS, EVERY])}")
    top, wrong = read(_Top, content | ({TESTS: scale[TESTS]} if TESTS in scale else {}))
    for text in wrong:
        say(f"the plan: {text}")
    top, built = top or _Top(), []
    for i, entry in enumerate(stages):
        values: dict[str, Any] = {"principles": list(top.principles)}
        fixed = {k: v for k, v in entry.items() if k != "name"}
        for layer in (content.get(EVERY), fixed, scale.get(EVERY), scale.get(own[i])):
            values = _laid_over(values, layer, say)
        built.append(_stage(entry.get("name"), values, own[:i], say))
    stages = tuple(stage for stage in built if stage)
    return _hashed(Plan(name, top.title or name, top.question, top.tests, top.principles, stages, ""))


def _stage(name: Any, values: dict, earlier: list[str], say: Callable[[str], None]) -> Stage | None:
    where = f"stage {name if isinstance(name, str) else len(earlier) + 1}"
    given = {k: v for k, v in values.items() if k not in GROUPS or v is not None}
    if "name" in given:
        say(f"{where}: unknown key 'name': a stage alone has one")
    stage, wrong = read(Stage, {"title": str(name)} | given | {"name": name}, {"earlier": earlier})
    for text in wrong:
        say(f"{where}: {text}")
    return stage


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


def _hashed(plan: Plan) -> Plan:
    facts = plan.as_dict()
    for key in ("title", "question", "hash"):
        del facts[key]
    for stage in facts["stages"]:
        del stage["title"]
    return replace(plan, hash=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())
