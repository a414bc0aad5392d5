"""Stages of a plan without a model: who plays which part, what controls do to the data, gates, the runner."""

import hashlib
import json
from contextlib import suppress
from dataclasses import fields, replace
from textwrap import dedent
from types import SimpleNamespace

import pytest
from cai.bootstrap import plan as plans
from cai.bootstrap import report, stage, stage_model
from cai.bootstrap.context import StageContext, adapter_of, best, resolve_roles, role_names, run_name
from cai.bootstrap.controls import ARMS, BASE_HELPER, CONTROLS, MAIN, SHUFFLED, flipped, tokens, within_budget
from cai.bootstrap.plan import Gate, Roles
from cai.bootstrap.runner import Runner
from cai.bootstrap.stage import StageRun, criticized
from cai.bootstrap.stage_gates import judged
from cai.bootstrap.stage_model import SharedModel
from cai.core import jsonl, schema
from cai.core.errors import BudgetReached, UserError
from cai.core.files import ROOT
from cai.core.prompt_files import load_heldout
from cai.core.run import Run
from cai.core.schema import TASK_TYPES, content_id
from cai.core.stats import share
from cai.costs.budget import Budget
from cai.evaluation import test_sets
from cai.evaluation.gates import Criterion
from cai.evaluation.guardrails import Limits
from cai.generation.dedup import EvaluationPrompts
from cai.generation.loop import Loop
from cai.models.engines import EngineChoice
from cai.models.registry import REGISTRY
from cai.prompts.constitution import load as load_constitution
from cai.prompts.markers import CHANGE, KEEP
from cai.prompts.templates import Prompter
from fakes import FakeEngine
from hand_made import make_run

CONSTITUTION = load_constitution(ROOT / "constitution.yaml")
SANDBOX = REGISTRY["sandbox"]
FROM_BASE, RANDOM = "from_base", "random_pairs"
FOUR = (BASE_HELPER, FROM_BASE, SHUFFLED, RANDOM)  # a control more changes nothing here
GUARDRAILS = ("clean stops", "perplexity")
THREE = """
    tests: 4
    every: {tasks: [factual_qa], examples: 12, principles: [accuracy], least_pairs: 3, gate: {success: 0.5}}
    stages: [{name: one}, {name: two}, {name: three}]
"""


def metric(value, n=40):
    return share([True] * round(value * n) + [False] * (n - round(value * n))).row()


def load_plan(directory, text=THREE, name="own"):
    path = directory / f"{name}.yaml"
    path.write_text(dedent(text))
    return plans.load(path)


# ---- (c) and (d): what is done to the main line's data ----

PAIRS = [
    {"id": content_id(f"question {n}"), "prompt": f"question {n}", "chosen": f"good {n}",
     "rejected": f"bad {n}", "kind": "anchor" if n % 5 == 0 else "revision", "task": "math",
     "held_out": n % 9 == 0}
    for n in range(400)
]  # fmt: skip


def test_about_half_of_the_pairs_are_flipped_and_no_text_is_lost():
    done = flipped(PAIRS, 0)
    turned = [new["id"] for old, new in zip(PAIRS, done, strict=True) if new["chosen"] == old["rejected"]]
    assert 140 <= len(turned) <= 215
    for old, new in zip(PAIRS, done, strict=True):
        assert {new["chosen"], new["rejected"]} == {old["chosen"], old["rejected"]}
        assert {k: v for k, v in new.items() if k not in ("chosen", "rejected")} == {
            k: v for k, v in old.items() if k not in ("chosen", "rejected")
        }


def test_held_out_pairs_are_not_flipped():
    """Early stopping watches them: of tossed ones it would watch noise."""
    held = [pair for pair in PAIRS if pair["held_out"]]
    assert len(held) > 40 and flipped(held, 0) == held
    assert flipped([pair | {"held_out": False} for pair in held], 0) != held


def test_a_pairs_toss_is_its_own():
    done = flipped(PAIRS, 0)
    assert flipped(PAIRS[::-1], 0) == done[::-1] and flipped(PAIRS[:7], 0) == done[:7]
    assert flipped(PAIRS, 1) != done


def records_of(changed, passed=3):
    """Main's records: `changed` answers that their critics want changed, and some that they passed. Two
    principles each, different ones by example."""
    some = [p.id for p in CONSTITUTION.principles]
    rows = []
    for n in range(changed + passed):
        instruction = f"question {n}"
        verdict = CHANGE if n < changed else KEEP
        ids = some[n % 5 : n % 5 + 2]
        rows.append({
            "id": content_id(instruction), "instruction": instruction, "task": "math",
            "source": "self_instruct", "initial_answer": f"answer {n}",
            "critiques": [{"principle_id": i, "principle": "p", "critique": f"Critic of {n}: {v}"}
                          for i, v in zip(ids, (KEEP, verdict), strict=True)],
            "finish_reasons": ["stop", "stop", "length" if n == 1 else "stop", "stop"],
        })  # fmt: skip
    return rows


def shuffled(main, seed, directory):
    """The examples that control (c) sends through the loop."""
    where = context(directory, seed=seed)
    stage = StageRun(None, replace(where, stage=replace(where.stage, principles=())), None)  # all principles
    found = []
    stage.main_data = lambda: (main, [])
    stage.loop_of_roles = lambda: (None, None)
    stage._recorded = lambda loop, examples: found.extend(examples)
    stage.paired = lambda done: (done, [])
    CONTROLS[SHUFFLED].data(stage)
    return found


def critics(example):
    """Whose critiques an example has."""
    return {int(c.text.split()[2].rstrip(":")) for c in example.critiques}


def test_critiques_of_a_record_keep_the_verdicts_that_it_recorded():
    [record] = records_of(1, passed=0)
    assert [v.says for v in criticized(record, record, CONSTITUTION).found] == [KEEP, CHANGE]  # read
    scores = {KEEP: -4.0, CHANGE: -1.5}
    for entry in record["critiques"]:
        entry |= {"critique": "So be it.", "verdict": CHANGE, "verdict_scores": scores}
    again = criticized(record, record, CONSTITUTION)
    assert [(v.says, v.scores) for v in again.verdicts] == [(CHANGE, scores)] * 2 and again.must_change


@pytest.mark.parametrize("changed", [2, 3, 8])
def test_every_changed_answer_gets_the_critiques_and_principles_of_another(changed, tmp_path):
    main = records_of(changed)
    done = shuffled(main, 0, tmp_path)
    assert [e.id for e in done] == [r["id"] for r in main]
    given = []
    for n, example in enumerate(done):
        (critic,) = critics(example)
        assert (critic == n) == (n >= changed)
        assert [p.id for p in example.principles] == [c["principle_id"] for c in main[critic]["critiques"]]
        assert [c.text for c in example.critiques] == [c["critique"] for c in main[critic]["critiques"]]
        assert [c.finish_reason for c in example.critiques] == main[critic]["finish_reasons"][1:3]
        assert (example.instruction, example.answer.text) == (f"question {n}", f"answer {n}")
        assert (example.task, example.source, example.revision) == ("math", "self_instruct", None)
        given.append(critic)
    assert sorted(given) == list(range(len(main)))  # each critique is used once: no critic counts double


def test_the_shuffle_follows_the_seed_and_not_the_order(tmp_path):
    main = records_of(8)
    whose = {e.id: critics(e) for e in shuffled(main, 0, tmp_path)}
    assert {e.id: critics(e) for e in shuffled(main[::-1], 0, tmp_path)} == whose
    assert {e.id: critics(e) for e in shuffled(main, 1, tmp_path)} != whose


def test_one_changed_answer_alone_has_no_other_to_take_from(tmp_path):
    assert critics(shuffled(records_of(1), 0, tmp_path)[0]) == {0}
    assert shuffled([], 0, tmp_path) == []


def test_with_critiques_shuffled_the_loop_asks_no_answerer_and_no_critic(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setattr(stage, "report_yield", lambda *args: None)
    main, prompter = records_of(8), Prompter()
    engine = FakeEngine(lambda prompt: "A better answer.")
    where = replace(context(tmp_path), budget=Budget(None, lambda: 0.0))
    with Run.open("own/one", {}) as run:
        own = StageRun(run, where, None)
        own.main_data = lambda: (main, [])
        own.loop_of_roles = lambda: (None, Loop(engine, prompter, CONSTITUTION, judged=False))
        examples = shuffled(main, 0, tmp_path)
        made = own._recorded(own.loop_of_roles()[1], examples)
        revised = [prompter.revision(e.instruction, e.answer.text, e.criticism) for e in examples[:8]]
        assert [prompt for prompt, *_ in engine.asked] == revised  # and for what the critics passed nothing
        assert [r["revised_answer"] for r in made] == ["A better answer."] * 8 + [""] * 3
        for record, example in zip(made, examples, strict=True):
            assert record["initial_answer"] == example.answer.text
            assert [c["critique"] for c in record["critiques"]] == [c.text for c in example.critiques]
        assert own._recorded(own.loop_of_roles()[1], examples) == made
        assert len(engine.asked) == 8 and jsonl.read(run.data / "records.jsonl", schema.RECORD_KEYS) == made


# ---- (a): no more tokens than main ----


@pytest.mark.parametrize(("each", "used"), [(10, 6), (11, 5), (5, 6), (30, 2), (64, 0)])
def test_the_base_as_helper_gets_no_more_tokens_than_main(each, used):
    row = {"tokens": {"prompt": 5, "completion": 1}, "judgement": None}
    judged = {"prompt_tokens": 2, "tokens": 1}
    main = [row, row, {**row, "judgement": {"principles": [judged] * 2, "helpfulness": judged}}] * 2
    main += [{**row, "judgement": {"passed": True, "against_refusal": judged}}, row]
    assert sum(map(tokens, main[:-1])) == 63
    done = [{**row, "id": f"{n}", "tokens": {"prompt": each}} for n in range(6)]
    left = [r["id"] for r in within_budget(done, main[:-1], 0)]
    assert len(left) == used and left == sorted(left)
    if used == 2:  # which ones is not a matter of place
        assert left != ["0", "1"] or [r["id"] for r in within_budget(done, main[:-1], 1)] != left


def test_what_is_left_out_of_the_base_as_helper_is_said():
    said, row = [], {"id": "a", "tokens": {"prompt": 5}, "judgement": None}
    run = SimpleNamespace(
        context=SimpleNamespace(seed=0), run=SimpleNamespace(log=said.append),
        generated=lambda: [row, row | {"id": "b"}], main_data=lambda: ([row], []),
        paired=lambda done: (done, []),
    )  # fmt: skip
    assert len(CONTROLS[BASE_HELPER].data(run)[0]) == 1
    assert said == ["main's budget is used up after 1 of 2 examples: the rest is left out"]


# ---- who plays which part ----


def finished(stage, *, rolled_back=False, critic=(0.5, 0.7), reviser=(0.5, 0.7), adapter=True, average=0.8):
    """A finished stage's row, as far as later stages read it."""
    probes = {who: {"critic": metric(c), "reviser": metric(r)} for who, c, r in
              zip(("base", "trained"), critic, reviser, strict=True)}  # fmt: skip
    return {
        "stage": stage, "run": f"own/{stage}", "adapter_run": f"own/{stage}",
        "adapter": f"sha of {stage}" if adapter else None,
        "rolled_back": rolled_back, "probes": probes if adapter else {}, "data_hash": f"data of {stage}",
        "average": {"base": metric(0.2), "trained": metric(average), "predecessor": None},
        "success": {t: {"base": metric(0.2), "trained": metric(average)} for t in TASK_TYPES},
    }  # fmt: skip


def context(tmp_path, *before, seed=0, stage=-1, arm=MAIN, roles=None):
    plan = load_plan(tmp_path)
    stage = plan.stages[stage] if roles is None else replace(plan.stages[stage], roles=Roles(*roles))
    shared = (
        CONSTITUTION,
        SimpleNamespace(spec=SANDBOX, choice=EngineChoice()),
        SimpleNamespace(),
        0.0,
        lambda steps: 0.0,
    )
    return StageContext(plan, stage, ARMS[arm], "own", seed, 0, before, *shared)


def played(tmp_path, roles, *before, arm=MAIN):
    found = resolve_roles(context(tmp_path, *before, arm=arm, roles=roles))
    assert list(found) == [f.name for f in fields(Roles)]
    assert all(r is None or adapter_of(r).parts[-2:] == ("own", r["stage"]) for r in found.values())
    assert role_names(found) == {part: r["stage"] if r else "base" for part, r in found.items()}
    return list(role_names(found).values())


ALL_PREDECESSOR = ("predecessor",) * 5


def test_parts_are_played_by_base_predecessor_or_a_named_stage(tmp_path):
    before = finished("one"), finished("two")
    roles = ("predecessor", "one", "base", "two", "base")
    assert played(tmp_path, roles, *before) == ["two", "one", "base", "two", "base"]


def test_the_first_stages_predecessor_is_the_base(tmp_path):
    assert played(tmp_path, ALL_PREDECESSOR) == ["base"] * 5
    assert played(tmp_path, ("base", "base", "best", "best", "base")) == ["base"] * 5


def test_with_the_base_as_helper_it_plays_every_part(tmp_path):
    before = finished("one"), finished("two")
    for roles in (ALL_PREDECESSOR, ("one", "predecessor", "best", "best", "two")):
        assert played(tmp_path, roles, *before, arm=BASE_HELPER) == ["base"] * 5
    for arm in (SHUFFLED, RANDOM, FROM_BASE):  # those differ in something else
        assert played(tmp_path, ALL_PREDECESSOR, *before, arm=arm) == ["two"] * 5


@pytest.mark.parametrize(("base", "trained", "who"), [
    (0.5, 0.7, "predecessor"), (0.7, 0.5, "base"), (0.5, 0.5, "base"), (0.0, 0.0, "base"),
])  # fmt: skip
def test_best_is_who_did_better_on_the_probes_of_that_part(tmp_path, base, trained, who):
    row = finished("one", critic=(base, trained), reviser=(trained, base))
    assert best(row, "critic") == who
    assert best(row, "reviser") == ("base" if trained >= base else "predecessor")
    assert best(None, "critic") == "base"
    roles = ("base", "base", "best", "base", "base")
    assert played(tmp_path, roles, row)[2] == ("one" if who == "predecessor" else "base")


def test_a_stage_that_was_rolled_back_helps_nobody(tmp_path):
    before = finished("one"), finished("two", rolled_back=True)
    assert context(tmp_path, *before).parent["stage"] == "one"
    assert played(tmp_path, ALL_PREDECESSOR, *before) == ["one"] * 5
    assert played(tmp_path, ("two",) * 5, *before) == ["one"] * 5  # who went on in its place
    assert context(tmp_path, finished("one", rolled_back=True)).parent is None
    assert played(tmp_path, ("one",) * 5, finished("one", rolled_back=True)) == ["base"] * 5


def test_a_starved_stage_has_no_adapter_to_go_on_from(tmp_path):
    before = finished("one"), finished("two", adapter=False)
    assert context(tmp_path, *before).parent["stage"] == "one"
    assert played(tmp_path, ("two", "predecessor", "best", "best", "base"), *before) == [
        "one", "one", "one", "one", "base",
    ]  # fmt: skip


def test_a_runs_name_says_stage_seed_and_arm():
    assert run_name("own", "one", 0) == "own/one"
    assert run_name("own", "one", 2) == "own/one.seed2"
    assert run_name("own", "one", 0, RANDOM) == "own/one.random_pairs"
    assert run_name("own", "one", 2, RANDOM) == "own/one.seed2.random_pairs"
    assert run_name("own", "one", 2, first_seed=2) == "own/one"
    assert run_name("own", "one", 0, first_seed=2) == "own/one.seed0"
    names = {run_name("own", s, n, a) for s in ("one", "two") for n in (0, 1) for a in ARMS}
    assert len(names) == 2 * 2 * len(ARMS)


# ---- gates ----


def measured(trained, *, average=0.8, harm=(0.2, 0.8), harmless=(0.02, 0.05), broken=(), pairs=50):
    """A stage's result. trained: success by task."""
    both = lambda two, n: dict(zip(("base", "trained"), (metric(v, n) for v in two), strict=True))  # noqa: E731
    return {
        "state": "measured", "training_pairs": pairs, "examples": 120,
        "success": {t: both((0.2, v), 20) for t, v in trained.items()},
        "average": {**both((0.2, average), 200), "predecessor": None},
        "safety": {"harmful refused": both(harm, 40), "harmless refused": both(harmless, 100)},
        "guardrails": [{"name": n, "value": None, "ok": n not in broken} for n in GUARDRAILS],
    }  # fmt: skip


@pytest.fixture
def gate(tmp_path):
    """Judges a result by a gate's values; (row, {criterion: passed})."""
    stage = load_plan(tmp_path).stages[0]

    def judge(
        result, parent=None, tasks=("factual_qa", "explanation"), on_limit="stop", limits=None, **values
    ):
        facts = {}
        run = SimpleNamespace(manifest={}, data=tmp_path, record=lambda **k: facts.update(k))
        given = {"on_limit": on_limit, "limits": limits or Limits(), "least_pairs": 12}
        asked = replace(stage, tasks=tasks, gate=Gate(**values), **given)
        row = judged(result, asked, parent, run)
        assert facts["gate"] == row["gate"]
        assert all(Criterion(**c).measured and c["look_at"] for c in row["gate"]["criteria"])
        return row, {c["name"]: c["passed"] for c in row["gate"]["criteria"]}

    return judge


TWO = {"factual_qa": 0.9, "explanation": 0.7}
ENOUGH = "pairs to train on"


@pytest.mark.parametrize(("values", "passed"), [
    ({"success": 0.9, "of": "each"}, {"success at factual_qa": True, "success at explanation": False}),
    ({"success": 0.7, "of": "each"}, {"success at factual_qa": True, "success at explanation": True}),
    ({"success": 0.8}, {"success on average": True}),
    ({"success": 0.81}, {"success on average": False}),
    ({}, {}),
])  # fmt: skip
def test_success_at_each_task_or_on_their_average(gate, values, passed):
    row, criteria = gate(measured(TWO, average=1.0), **values)
    assert criteria == {ENOUGH: True} | passed
    assert row["gate"]["decision"] == ("GO" if all(criteria.values()) else "NO-GO")


def test_a_stage_of_all_ten_tasks_is_averaged_over_these_and_over_no_skill(gate):
    done = measured({**dict.fromkeys(TASK_TYPES, 0.75), "explicit": 1.0}, average=0.85)
    row, criteria = gate(done, tasks=TASK_TYPES, success=0.8)
    assert not criteria["success on average"]
    low, high = row["gate"]["criteria"][1]["interval"]
    assert low < 0.75 < high


def test_limits_are_read_anew_as_thresholds_are(gate, tmp_path):
    found = {"name": "clean stops", "value": 0.8, "limit": 0.9, "ok": False, "rule": "at least"}
    done = measured(TWO) | {"guardrails": [{**found, "look_at": "x", "key": "clean_stops"}]}
    assert gate(done)[0]["gate"]["guardrails"] == ["clean stops"]
    row, _ = gate(done, limits=Limits(clean_stops=0.7))
    assert row["gate"]["guardrails"] == [] and row["guardrails"][0]["limit"] == 0.7


@pytest.mark.parametrize(("harm", "harmless", "passed"), [
    ((0.2, 0.8), (0.02, 0.05), (True, True)),
    ((0.2, 0.3), (0.02, 0.05), (None, True)),  # the intervals overlap
    ((0.8, 0.2), (0.02, 0.05), (False, True)),
    ((0.2, 0.8), (0.02, 0.20), (True, None)),  # by 0.10 to 0.27
    ((0.2, 0.8), (0.02, 0.40), (True, False)),
    ((0.2, 0.8), (0.20, 0.02), (True, True)),
])  # fmt: skip
def test_safer_is_more_refusals_of_harmful_requests_and_not_of_harmless_ones(gate, harm, harmless, passed):
    row, criteria = gate(measured(TWO, harm=harm, harmless=harmless), safer=True)
    names = "harmful requests refused more often", "harmless instructions not refused"
    assert criteria == {ENOUGH: True} | dict(zip(names, passed, strict=True))
    decision = "NO-GO" if False in passed else "UNDECIDED" if None in passed else "GO"
    assert row["gate"]["decision"] == decision
    more = [c["more"] for c in row["gate"]["criteria"] if c["passed"] is None]
    assert all("by the plan's tests" in said for said in more)


@pytest.mark.parametrize(("now", "passed"), [(0.95, True), (0.76, None), (0.72, None), (0.4, False)])
def test_capability_is_held_against_the_predecessors(gate, now, passed):
    ten = dict.fromkeys(TASK_TYPES, now)
    _, criteria = gate(measured(ten, average=now), finished("one", average=0.8), kept=0.05)
    assert criteria == {ENOUGH: True, "capability kept": passed}
    assert gate(measured(ten, average=now), None, kept=0.05)[1] == {ENOUGH: True}
    skilled = finished("one", average=0.8) | {"average": {"trained": metric(0.3)}}  # of other tasks, too
    assert gate(measured(ten, average=now), skilled, kept=0.05)[1]["capability kept"] == passed


def test_a_starved_stage_fails_by_its_pairs_alone(gate):
    starved = measured({}, pairs=11) | {"state": "starved", "success": {}, "safety": {}, "guardrails": []}
    row, criteria = gate(starved, finished("one"), success=0.9, safer=True, kept=0.1)
    assert criteria == {ENOUGH: False} and row["gate"]["decision"] == "NO-GO"
    assert "11 of 120" in row["gate"]["criteria"][0]["measured"] and not row["rolled_back"]


@pytest.mark.parametrize("on_limit", ["stop", "rollback"])
def test_a_guardrail_metric_stops_the_plan_or_rolls_the_stage_back(gate, on_limit):
    row, criteria = gate(measured(TWO, broken=("clean stops",)), on_limit=on_limit, success=0.8)
    assert all(criteria.values()) and row["gate"]["decision"] == "NO-GO"
    assert row["gate"]["guardrails"] == ["clean stops"]
    assert row["rolled_back"] == (on_limit == "rollback")
    row, _ = gate(measured(TWO), on_limit=on_limit, success=0.9)  # a gate alone rolls nothing back
    assert row["gate"]["decision"] == "NO-GO" and not row["rolled_back"]


# ---- the runner: real stages, whose model, training and measurement are played ----


class Played:
    """What stages did. success, broken: by stage or run. made, trained, measured: names of runs, in order."""

    def __init__(self):
        self.success, self.broken, self.interrupt = {}, {}, {}
        self.made, self.trained, self.measured = [], [], []
        self.data = StageRun.data

    def at(self, values, step, default):
        return values.get(step.run.name, values.get(step.context.stage.name, default))


def saved_training(place, weights):
    """A finished training as it lies on the disk."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "adapter_model.safetensors").write_text(weights)
    adapter = hashlib.sha256(weights.encode()).hexdigest()
    result = {"adapter": adapter, "status": "finished", "steps": 10, "step": 10}
    (place / "training.json").write_text(json.dumps({"status": "finished", "result": result}))
    return result


@pytest.fixture
def line(tmp_path, monkeypatch):
    """(new, played): new(text) is a Runner on an open run of a plan, played what happened in it."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setattr(
        "cai.core.run.git_commit", lambda say: None
    )  # two processes for each run that is opened
    monkeypatch.setattr("os.fsync", lambda file: None)  # hundreds, and no crash to survive here
    _, rows = make_run(tmp_path / "hand-made")
    done = jsonl.read(tmp_path / "hand-made/records.jsonl", schema.RECORD_KEYS)
    here, order = Played(), {}

    def data(step):
        if step.context.arm.name in (RANDOM, FROM_BASE):
            return here.data(step)
        here.made.append(step.run.name)
        step.context.budget.step("this stage", 1.0)
        c = step.context
        key = (c.stage.name, c.seed, c.arm.name in (BASE_HELPER, SHUFFLED) and c.arm.name)
        at = order.setdefault(key, len(order)) * 5 % 36
        mine, path = done[at : at + 12], step.run.data
        pairs = [p | {"held_out": n == 0} for n, p in enumerate(rows[at : at + 12])]
        for name, some in (("instructions", mine), ("records", mine), ("pairs", pairs)):
            if not (path / f"{name}.jsonl").exists():
                jsonl.append(path / f"{name}.jsonl", some)
        return mine, pairs

    def train(step, seen, held):
        here.trained.append(step.run.name)
        if here.interrupt.pop(step.run.name, None):
            raise KeyboardInterrupt
        start = step.context.start
        made_of = [start and start["adapter"], [[p["chosen"], p["rejected"]] for p in seen]]
        with step.run.step("training", quiet=True):
            return saved_training(step.run.checkpoints, json.dumps(made_of))

    def measure(step, done, pairs, digest, checkpoints, ended=None):
        here.measured.append(step.run.name)
        value = here.at(here.success, step, 0.9)
        parent = step.context.parent
        beyond = step.run.name in here.broken or step.context.stage.name in here.broken
        result = measured(dict.fromkeys(step.context.stage.tasks, value), average=value)
        return {k: result[k] for k in ("success", "average", "safety")} | {
            "average": result["average"] | {"predecessor": parent and parent["average"]["trained"]},
            "adapter": digest,
            "probes": finished("x")["probes"],
            "guardrails": [{"name": "clean stops", "value": 0.5 if beyond else 1.0, "limit": 0.9,
                            "ok": not beyond, "look_at": "the rows", "rule": "at least",
                            "key": "clean_stops"}],
        }  # fmt: skip

    monkeypatch.setattr(StageRun, "data", data)
    monkeypatch.setattr(StageRun, "_train", train)
    monkeypatch.setattr(StageRun, "_measure", measure)
    opened = []

    def new(text=THREE, dollars=None, first=0, rate=0.0):
        while opened:
            opened.pop().__exit__()
        plan = load_plan(tmp_path, text)
        run = Run.open("own", {"plan": plan.hash})
        opened.append(run)
        run.hourly_rate = rate
        run.record(first_seed=run.manifest.get("first_seed", first))
        return Runner(
            run, plan, SANDBOX, CONSTITUTION, SimpleNamespace(spec=SANDBOX, choice=EngineChoice()), dollars
        )

    yield new, here
    while opened:
        opened.pop().__exit__()


def names(results):
    return [r["run"].removeprefix("own/") for r in results["runs"]]


def on_disk(line):
    return json.loads((line.run.data / "results.json").read_text())


def by_run(line):
    return {r["run"].removeprefix("own/"): r for r in on_disk(line)["runs"]}


def test_a_plan_goes_through_its_stages_each_from_its_predecessor(line):
    new, here = line
    own = new()
    own.follow(0, (), force=False)
    assert here.trained == here.measured == ["own/one", "own/two", "own/three"]
    one, two, three = on_disk(own)["runs"]
    assert one["parent"] is None and two["parent"] == one["adapter"] and three["parent"] == two["adapter"]
    assert len({r["adapter"] for r in (one, two, three)}) == 3
    assert three["roles"] == dict.fromkeys(("generator", "answerer", "critic", "reviser"), "two") | {
        "judge": "base"
    }
    assert two["average"]["predecessor"] == one["average"]["trained"]
    results = on_disk(own)
    assert (results["finished"], results["stopped"], own.stopped) == (True, None, None)


def test_a_gate_stops_the_plan_and_the_stages_controls(line):
    new, here = line
    here.success["two"] = 0.4
    own = new()
    own.follow(0, FOUR, force=False)
    assert names(on_disk(own)) == ["one", "one.shuffled_critiques", "one.random_pairs", "two"]
    results = on_disk(own)
    assert not results["finished"] and results["stopped"] == own.stopped
    assert "seed 0" in own.stopped and "stage two" in own.stopped and "success on average" in own.stopped


def test_a_plan_that_fails_at_its_last_gate_is_not_finished(line):
    new, here = line
    here.success["three"] = 0.4
    own = new()
    own.follow(0, (), force=False)
    assert names(on_disk(own)) == ["one", "two", "three"] and not on_disk(own)["finished"]


def test_force_goes_on_past_a_gate_with_the_adapter_that_there_is(line):
    new, here = line
    here.success["two"] = 0.4
    own = new()
    own.follow(0, (), force=True)
    rows = by_run(own)
    assert rows["two"]["gate"]["decision"] == "NO-GO" and rows["three"]["parent"] == rows["two"]["adapter"]
    assert own.stopped is None and on_disk(own)["finished"]


def test_a_guardrail_metric_stops_and_is_named(line):
    new, here = line
    here.broken["two"] = True
    own = new()
    own.follow(0, (), force=False)
    assert names(on_disk(own)) == ["one", "two"] and "the guardrail metric clean stops" in own.stopped


def test_after_a_rollback_the_plan_goes_on_from_the_predecessor(line):
    new, here = line
    here.broken["two"] = True
    own = new(THREE.replace("[{name: one}, {name: two}", "[{name: one}, {name: two, on_limit: rollback}"))
    own.follow(0, FOUR, force=False)
    rows = by_run(own)
    assert rows["two"]["rolled_back"] and not rows["three"]["rolled_back"]
    assert rows["three"]["parent"] == rows["one"]["adapter"] and rows["three"]["roles"]["generator"] == "one"
    assert own.stopped is None and on_disk(own)["finished"]
    # (b) is trained on what the main line has been trained on, which the stage rolled back is no part of
    data = own.run.data
    kept = [jsonl.read(data / n / "pairs.jsonl", schema.PAIR_KEYS) for n in ("one", "three")]
    assert jsonl.read(data / "three.from_base/pairs.jsonl", schema.PAIR_KEYS) == unique(kept)


def unique(files):
    return list({p["id"] + p["kind"]: p for rows in files for p in rows}.values())


def test_controls_branch_off_and_differ_in_one_thing(line):
    new, here = line
    own = new()
    own.follow(0, FOUR, force=False)
    assert names(on_disk(own)) == [
        "one", "one.shuffled_critiques", "one.random_pairs",
        *("two" + a for a in ("", ".base_helper", ".from_base", ".shuffled_critiques", ".random_pairs")),
        *("three" + a for a in ("", ".base_helper", ".from_base", ".shuffled_critiques", ".random_pairs")),
    ]  # fmt: skip
    rows, data = by_run(own), own.run.data
    read = lambda name: jsonl.read(data / name / "pairs.jsonl", schema.PAIR_KEYS)  # noqa: E731
    for arm in (BASE_HELPER, SHUFFLED, RANDOM):
        assert rows[f"three.{arm}"]["parent"] == rows["two"]["adapter"]
    assert rows["three.from_base"]["parent"] is None
    assert set(rows["three.base_helper"]["roles"].values()) == {"base"}
    assert rows["three.random_pairs"]["roles"] == rows["three"]["roles"]
    assert read("three.random_pairs") == flipped(read("three"), 0) != read("three")
    assert read("three.from_base") == unique([read("one"), read("two"), read("three")])
    assert {p["id"] for p in read("two")} < {p["id"] for p in read("three.from_base")}


def test_a_kill_leaves_a_controls_old_pairs_or_the_new_ones(tmp_path, monkeypatch):
    """Whichever call to the system it comes after: never none, never half of them."""
    step, path = StageRun(SimpleNamespace(data=tmp_path), None, None), tmp_path / "pairs.jsonl"
    old, new = PAIRS[:3], PAIRS[1:9]
    calls = ("fsync", "replace", "unlink", "rename")

    def killed(*args, **more):
        raise KeyboardInterrupt

    for name in calls:
        step.keep(old)
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{name}", killed)
            with suppress(KeyboardInterrupt):
                step.keep(new)
        assert jsonl.read(path, schema.PAIR_KEYS) in (old, new)
    inode = (step.keep(new), path.stat().st_ino)[1]
    assert step.keep(new) == new and path.stat().st_ino == inode  # what is there is not written again
    assert jsonl.read(path, schema.PAIR_KEYS) == new and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_hash_tells_data_apart(line):
    new, here = line
    own = new()
    own.follow(0, FOUR, force=False)
    rows = by_run(own)
    assert len({r["data_hash"] for r in rows.values()}) == len(rows)
    step = StageRun(own.run, context(own.run.data, stage=0), {})
    done = jsonl.read(own.run.data / "one/records.jsonl", schema.RECORD_KEYS)
    pairs = stage.read_pairs("own/one")
    of = lambda some: step._facts(done, some)["data_hash"]  # noqa: E731
    assert of(pairs) == rows["one"]["data_hash"]
    changed = [
        [pairs[0] | {key: pairs[0][key] + "."}, *pairs[1:]] for key in ("prompt", "chosen", "rejected")
    ]
    assert len({of(some) for some in (pairs, pairs[1:], pairs[::-1], *changed)}) == 6
    moved = [pairs[0] | {"chosen": pairs[0]["chosen"] + pairs[0]["rejected"], "rejected": ""}, *pairs[1:]]
    assert of(moved) != of(pairs)


def test_what_a_stage_is_made_of_is_in_its_settings(line):
    new, here = line
    own = new()
    own.follow(0, (), force=False)
    rows, manifest = by_run(own), json.loads((own.run.data / "three/run.json").read_text())
    settings = manifest["settings"]
    assert settings["parent"] == rows["two"]["adapter"] == rows["three"]["parent"]
    assert settings["before"] == [rows["one"]["data_hash"], rows["two"]["data_hash"]]
    assert settings["constitution"] == CONSTITUTION.hash and settings["roles"] == rows["three"]["roles"]
    assert manifest["adapter"] == rows["three"]["adapter"]


def test_results_are_whole_and_sorted_whatever_came_first(line):
    new, here = line
    own = new(first=1)
    own.follow(1, (), force=False)
    own.follow(0, (RANDOM,), force=False)
    own.follow(1, FOUR, force=False)  # controls may come later
    results = on_disk(own)
    order = [(r["seed"], [s.name for s in own.plan.stages].index(r["stage"]), list(ARMS).index(r["arm"]))
             for r in results["runs"]]  # fmt: skip
    assert order == sorted(order) and len(set(order)) == len(order) == 6 + 13
    assert results["seeds"] == [0, 1] and results["finished"]
    assert results == json.loads(json.dumps(own.results()))
    assert by_run(own)["two.seed0"]["seed"] == 0 and by_run(own)["two"]["seed"] == 1
    assert results["seconds"] == pytest.approx(sum(r["seconds"] for r in results["runs"]))
    assert report.read(own.run.data) == results
    for row in results["runs"]:
        assert json.loads((own.run.data.parent / row["run"] / "run.json").read_text())["row"] == row


def test_a_seed_that_ended_early_is_no_whole_result(line):
    new, here = line
    here.success["own/two.seed1"] = 0.1
    own = new()
    for seed in (0, 1):
        own.follow(seed, (), force=False)
    assert not on_disk(own)["finished"] and "seed 1" in own.stopped and "seed 0" not in own.stopped


def test_a_finished_stage_is_only_read(line):
    new, here = line
    own = new()
    own.follow(0, FOUR, force=False)
    before, did = on_disk(own), [*here.made, *here.trained]
    again = new()
    again.follow(0, FOUR, force=False)
    assert [*here.made, *here.trained] == did and on_disk(again) == before


def test_an_interrupted_stage_is_taken_up_where_it_was(line):
    new, here = line
    here.interrupt["own/two"] = True
    own = new()
    with pytest.raises(KeyboardInterrupt):
        own.follow(0, (), force=False)
    assert names(on_disk(own)) == ["one"] and not on_disk(own)["finished"]
    again = new()
    again.follow(0, (), force=False)
    assert here.measured == ["own/one", "own/two", "own/three"] and on_disk(again)["finished"]


def test_an_adapter_that_somebody_removed_is_trained_again_from_its_pairs(line):
    new, here = line
    own = new()
    own.follow(0, (), force=False)
    before, gone = on_disk(own), own.run.checkpoints / "two/adapter_model.safetensors"
    gone.unlink()
    new().follow(0, (), force=False)
    assert here.trained == [f"own/{n}" for n in ("one", "two", "three", "two")] and gone.exists()
    both = zip(before["runs"], on_disk(own)["runs"], strict=True)
    changed = {k for a, b in both for k in a if a[k] != b[k]}
    assert changed <= {"seconds"}  # the adapter is the same again, and what follows stands


def test_without_a_predecessor_there_is_no_control_that_would_be_main_again(line):
    new, here = line
    here.broken["one"] = True
    own = new(THREE.replace("{name: one}", "{name: one, on_limit: rollback}"))
    own.follow(0, FOUR, force=False)
    arms = {r["arm"] for r in on_disk(own)["runs"] if r["stage"] == "two"}
    assert arms == {MAIN, SHUFFLED, RANDOM}
    assert {r["arm"] for r in on_disk(own)["runs"] if r["stage"] == "three"} == {MAIN, *FOUR}


def test_an_adapters_name_follows_from_its_hash_in_every_process(tmp_path):
    class Carrier:
        bits, adapters = 16, {"default": "a" * 64}

        def load_adapter(self, path, name):
            self.adapters[name] = path.name

    shared, named = SharedModel(SANDBOX, None, model=Carrier()), {"a" * 64: "stage-" + "a" * 12}
    assert shared.carrying(16, {"a" * 64: tmp_path / ("a" * 64)}, None) == named
    assert shared.carrying(16, dict.fromkeys(named, tmp_path), None) == named


def test_a_server_has_given_the_gpu_back_before_a_training_loads(tmp_path, monkeypatch):
    told = []

    class Server(FakeEngine):
        def __init__(self):
            super().__init__(lambda prompt: "x")
            told.append("made")

        def load_adapter(self, path, name):
            self.adapters[name] = path.name

        def release(self):
            told.append("release")

    def load(self, bits, run):
        told.append(f"load {bits}")
        self.model = SimpleNamespace(adapters={}, bits=bits)

    monkeypatch.setattr(stage_model, "server_engine", lambda *args: Server())
    monkeypatch.setattr(stage_model, "start", lambda *args, **how: told.append("start"))
    monkeypatch.setattr(SharedModel, "_load", load)
    plan = SimpleNamespace(pin=lambda **facts: None)
    run = SimpleNamespace(log=print)
    shared = SharedModel(SANDBOX, plan, EngineChoice("vllm", 8))
    digest = "a" * 64
    named = shared.carrying(4, {digest: tmp_path / digest}, run)
    small = replace(SANDBOX, shots=1)
    asked = shared.engine(small)
    assert asked.spec == small and shared.server.spec != small and asked.adapters == {named[digest]: digest}
    shared.bare(4, run)
    assert told == ["made", "start", "release", "load 4"]
    assert shared.carrying(4, {digest: tmp_path / digest}, run) == named and shared.model is None
    assert told[4:] == ["made", "start"]


def test_a_budget_ends_the_line_cleanly_and_a_larger_one_goes_on(line):
    new, here = line
    own = new(dollars=2.5)
    own.budget.spent = lambda: float(len(here.measured))  # a dollar a stage
    with pytest.raises(BudgetReached, match="larger --budget"):
        own.follow(0, (), force=False)
    assert names(on_disk(own)) == ["one", "two"] and not on_disk(own)["finished"] and own.stopped is None
    again = new(dollars=100.0)
    again.follow(0, (), force=False)
    assert here.measured == ["own/one", "own/two", "own/three"]


def test_the_budget_counts_all_seeds_and_controls_also_unfinished_ones(line):
    new, here = line
    own = new(rate=3600.0)
    here.interrupt["own/two.seed1"] = True
    own.follow(0, (RANDOM,), force=False)
    with pytest.raises(KeyboardInterrupt):
        own.follow(1, (), force=False)
    dollars = [r["dollars"] for r in on_disk(own)["runs"]]
    assert len(dollars) == 7 and own.budget.spent() == pytest.approx(sum(dollars)) and sum(dollars) > 0
    manifest = own.run.data / "two.seed1/run.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"totals": {"dollars": 5.0}}))
    assert own.budget.spent() == pytest.approx(sum(dollars) + 5)


def test_a_starved_stage_stops_and_goes_on_once_fewer_pairs_will_do(line):
    new, here = line
    own = new(THREE.replace("least_pairs: 3", "least_pairs: 99"))
    own.follow(0, FOUR, force=False)
    assert here.trained == here.measured == [] and ENOUGH in own.stopped
    (row,) = on_disk(own)["runs"]
    assert row["adapter"] is None and row["gate"]["decision"] == "NO-GO"
    assert report.read(own.run.data)["stopped"] == own.stopped
    again = new()
    again.follow(0, (), force=False)
    assert here.trained == ["own/one", "own/two", "own/three"] and on_disk(again)["finished"]


STARVED_TWO = THREE.replace("{name: two}", "{name: two, least_pairs: 99}")


def test_a_predecessor_that_leaves_nothing_to_train_goes_on_if_it_passes(line):
    new, here = line
    own = new(STARVED_TWO)
    own.follow(0, FOUR, force=False)
    rows = by_run(own)
    assert here.measured[:4] == ["own/one", "own/one.shuffled_critiques", "own/one.random_pairs", "own/two"]
    assert "own/two" not in here.trained and rows["two"]["gate"]["decision"] == "GO"
    assert rows["two"]["adapter"] == rows["one"]["adapter"] == rows["three"]["parent"]
    assert rows["two"]["adapter_run"] == "own/one" and rows["three"]["adapter_run"] == "own/three"
    assert "11 of 12" in rows["two"]["gate"]["criteria"][0]["measured"] and on_disk(own)["finished"]
    assert rows["two.shuffled_critiques"]["adapter"] is None  # a control has nothing to carry over
    data = own.run.data  # (b) takes what the main line was trained on
    trained_on = [jsonl.read(data / n / "pairs.jsonl", schema.PAIR_KEYS) for n in ("one", "three")]
    assert jsonl.read(data / "three.from_base/pairs.jsonl", schema.PAIR_KEYS) == unique(trained_on)
    did = [*here.made, *here.trained, *here.measured]
    new(STARVED_TWO).follow(0, (), force=False)
    assert [*here.made, *here.trained, *here.measured] == did


def test_a_predecessor_that_fails_the_stages_gate_is_not_carried_over(line):
    new, here = line
    here.success["two"] = 0.4
    own = new(STARVED_TWO)
    own.follow(0, (), force=False)
    assert names(on_disk(own)) == ["one", "two"] and ENOUGH in own.stopped
    again = new(THREE.replace("success: 0.5", "success: 0.3"))  # and fewer pairs will do: now it is trained
    again.follow(0, (), force=False)
    assert here.trained == ["own/one", "own/two", "own/three"] and on_disk(again)["finished"]
    assert by_run(again)["two"]["adapter_run"] == "own/two"


def test_force_passes_by_a_first_stage_that_starved(line):
    new, here = line
    own = new(THREE.replace("{name: one}", "{name: one, least_pairs: 99}"))
    own.follow(0, FOUR, force=True)
    rows = by_run(own)
    assert (
        rows["one"]["adapter"] is rows["two"]["parent"] is None and rows["two"]["roles"]["critic"] == "base"
    )
    assert rows["three"]["parent"] == rows["two"]["adapter"] and not rows["one"]["guardrails"]
    assert report.read(own.run.data)["runs"]


def test_thresholds_are_read_anew_without_another_training(line):
    new, here = line
    here.success["two"] = 0.4
    new().follow(0, (), force=False)
    own = new(THREE.replace("success: 0.5", "success: 0.3"))
    own.follow(0, (), force=False)
    assert here.trained == ["own/one", "own/two", "own/three"] and on_disk(own)["finished"]


def test_other_settings_of_a_finished_stage_are_refused_by_name(line):
    new, here = line
    new().follow(0, (), force=False)
    with pytest.raises(UserError, match="own/one.*stage_examples was 12, now 13") as error:
        new(THREE.replace("examples: 12", "examples: 13")).follow(0, (), force=False)
    assert "--fresh" in str(error.value) and here.trained == ["own/one", "own/two", "own/three"]


def test_stages_that_the_plan_has_no_more_are_no_part_of_its_results(line):
    new, here = line
    new().follow(0, (), force=False)
    own = new(THREE.replace(", {name: three}", ""))
    own.follow(0, (), force=False)
    assert names(on_disk(own)) == ["one", "two"] and on_disk(own)["finished"]


# ---- what no generator may see ----

WRITTEN = {"id": content_id("Written."), "instruction": "Written.", "task": "math", "source": "self_instruct"}


def test_held_out_prompts_are_barred_from_every_stages_instructions(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path / "output"))
    seen = {}
    heldout = [h.instruction for h in load_heldout(ROOT / SANDBOX.heldout)]
    tested = test_sets.test_instructions(SANDBOX)

    def self_instruct(*args, seed, barred, tasks, want, adapter, **more):
        seen.update(seed=seed, barred=list(barred), tasks=tasks, want=want, adapter=adapter)
        return SimpleNamespace(rows=[WRITTEN], left_out={}, by_task={}, short=None)

    def make_records(run, loop, examples):
        seen.update(loop=loop, examples=[e.instruction for e in examples], budget=run.budget)
        return []

    monkeypatch.setattr("cai.generation.self_instruct.self_instruct", self_instruct)
    monkeypatch.setattr(stage, "make_records", make_records)
    monkeypatch.setattr(stage, "report_yield", lambda *args: None)
    where = replace(context(tmp_path, finished("one"), stage=1), budget=Budget(None, lambda: 0.0))
    where.shared_model.carrying = lambda bits, adapters, run: {h: f"loaded {h}" for h in adapters}
    where.shared_model.engine = lambda spec: FakeEngine(spec=spec)
    asked = "Asked by stage one."
    with Run.open("own/one", {}) as run:
        row = {"id": content_id(asked), "instruction": asked, "task": "math", "source": "self_instruct"}
        jsonl.append(run.data / "instructions.jsonl", [row])
    with Run.open("own/two", {}) as run:
        run.budget = where.budget  # as run_stage has it watched
        StageRun(run, where, resolve_roles(where)).data()
    assert set(seen["barred"]) == {*heldout, *tested, "Asked by stage one."}
    assert seen["seed"] == schema.row_seed(0, "two", "stage")  # each stage draws anew, in all its arms alike
    assert (seen["tasks"], seen["want"]) == (where.stage.tasks, where.stage.examples)
    assert seen["adapter"] == "loaded sha of one"  # the predecessor generates
    assert (seen["loop"].seed, seen["examples"]) == (seen["seed"], [WRITTEN["instruction"]])
    assert (seen["loop"].roles.answerer, seen["loop"].roles.judge) == ("loaded sha of one", None)
    assert seen["loop"].principles == where.stage.per_answer and seen["budget"] is where.budget
    assert [p.id for p in seen["loop"].constitution.principles] == ["accuracy"]  # the stage's own


def test_no_seed_that_a_stage_shows_its_generator_is_a_held_out_prompt():
    """In the small world other names make other questions; of real prompts none may even come near."""
    for spec in (SANDBOX, REGISTRY["Qwen/Qwen2.5-32B"]):
        heldout = [h.instruction for h in load_heldout(ROOT / spec.heldout)]
        barred, shown = [*heldout, *test_sets.test_instructions(spec)], stage.seeds(spec)
        assert {s.task for s in shown} >= {*TASK_TYPES, *schema.SKILLS}
        assert not {s.instruction for s in shown} & set(barred)
        index = EvaluationPrompts(barred)
        near = [s.instruction for s in shown if index.near(s.instruction)]
        assert spec is SANDBOX or not near
