"""Plans: what comes with the project, plans of one's own, and every mistake that a plan can have."""

import json
import re
from dataclasses import replace
from textwrap import dedent

import pytest
from cai.bootstrap import plan as plans
from cai.bootstrap.plan import Gate, Roles
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.evaluation.guardrails import Limits
from cai.models.registry import REGISTRY
from cai.prompts.constitution import load as load_constitution
from cai.prompts.templates import Prompter

OWN = """
    title: Sums first
    question: Do sums help with the rest?
    stages:
      - name: sums
        tasks: [math]
        examples: 200
        gate: {success: 0.9}
      - {name: rest, tasks: all, examples: 1000, gate: {success: 0.7, of: average}}
"""


@pytest.fixture
def plan(tmp_path):
    """Loads a plan from its text."""

    def load(text, name="own"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(dedent(text))
        return plans.load(path)

    return load


# ---- the plans of the project ----


def test_progressive_has_the_stages_that_the_question_needs():
    stages = {s.name: s for s in plans.load("progressive").stages}
    assert list(stages) == ["facts", "few", "many", "constitutional"]
    facts, few, many, last = stages.values()
    assert facts.tasks == ("factual_qa",) and 100 <= facts.examples <= 500
    assert facts.gate == Gate(0.90, "each")
    assert few.tasks == ("factual_qa", "summarization", "explanation")
    assert 200 <= few.examples / 3 <= 500 and few.gate == Gate(0.85, "each")
    assert len(many.tasks) == 10 and many.examples / 10 >= 100 and many.gate == Gate(0.80, "average")
    assert last.examples >= 1000 and last.principles == ()
    assert last.gate.safer and last.gate.kept is not None


def test_six_stages_use_what_earlier_ones_learned():
    stages = {s.name: s for s in plans.load("six-stage").stages}
    assert list(stages) == ["explicit", "implicit", "generation", "evaluation", "revision", "constitution"]
    assert stages["explicit"].gate.success == 0.95
    assert all(500 <= s.examples <= 1000 for s in stages.values())
    last = stages["constitution"].roles
    assert (last.generator, last.critic, last.reviser) == ("generation", "evaluation", "revision")
    assert stages["implicit"].tasks == ("explicit", "implicit")


@pytest.mark.parametrize("name", plans.names())
def test_the_projects_plans_fit_the_constitution_and_one_a100(name):
    plan, known = plans.load(name), load_constitution(ROOT / "constitution.yaml")
    large = REGISTRY["Qwen/Qwen2.5-32B"]
    for stage in (*plan.stages, *plan.scaled("sandbox").stages):
        assert all(known.by_id(p) for p in stage.principles)
        assert stage.per_answer <= len(stage.principles or known.principles)
    plans.check(plan, known)
    plans.check(plan.scaled("sandbox"), known)
    for stage in plan.stages:
        assert stage.bits == 4, "adapter, gradients and 16-bit weights of 32B pass 80 GB together"
        assert large.memory_gb(stage.generate_bits) < 80


@pytest.mark.parametrize("name", plans.names())
def test_a_scale_changes_figures_and_not_the_experiment(name):
    plan = plans.load(name)
    small = plan.scaled("sandbox")
    assert plan.scaled("Qwen/Qwen2.5-32B") is plan and small.hash != plan.hash
    assert small.tests <= plan.tests and not small.scales
    for a, b in zip(plan.stages, small.stages, strict=True):
        assert (a.name, a.roles) == (b.name, b.roles) and set(b.tasks) <= set(a.tasks)
        lower = round(a.gate.success - b.gate.success, 2)  # 0.10 where the small model cannot do better
        assert replace(a.gate, success=b.gate.success) == b.gate and lower in (0, 0.1)
        assert b.examples <= a.examples and b.bits is None and b.generate_bits is None


# ---- plans of one's own ----


def test_a_plan_of_ten_lines(plan):
    assert len(dedent(OWN).strip().splitlines()) <= 10
    own = plan(OWN)
    assert (own.name, own.title, own.tests, own.principles_default) == ("own", "Sums first", 40, ())
    sums, rest = own.stages
    assert (sums.title, sums.tasks, sums.examples) == ("sums", ("math",), 200)
    assert sums.gate == Gate(0.9) and sums.roles == Roles() and sums.limits == Limits()
    assert sums.roles.critic == sums.roles.reviser == "best" and sums.on_limit == "stop"
    assert len(rest.tasks) == 10 and "explicit" not in rest.tasks
    assert own.scaled("sandbox") is own


def test_values_are_laid_over_each_other_key_by_key(plan):
    own = plan(
        OWN
        + """
    every: {bits: 8, gate: {success: 0.5, kept: 0.1}, limits: {critic: 0.2}}
    principles: [accuracy, harm]
    scales:
      sandbox:
        tests: 7
        every: {bits: null, limits: {perplexity: 3}}
        rest: {examples: 30, principles: [], roles: {critic: sums}}
        sums: {gate: {of: each}}
    """
    )
    sums, rest = own.stages
    assert sums.bits == rest.bits == 8 and sums.gate == Gate(0.9, "average", False, 0.1)
    assert sums.principles == ("accuracy", "harm") == own.principles_default
    small = own.scaled("sandbox")
    assert small.tests == 7 and [s.bits for s in small.stages] == [None, None]
    assert small.stages[0].gate == Gate(0.9, "each", False, 0.1)
    assert small.stages[1].limits == Limits(critic=0.2, perplexity=3)
    assert (small.stages[1].examples, small.stages[1].roles) == (30, Roles(critic="sums"))
    assert small.stages[0].principles and not small.stages[1].principles  # [] asks for all


def test_a_plans_principles_are_those_of_stages_that_name_none(plan):
    own = plan(
        """
    principles: [accuracy]
    every: {examples: 20, tasks: [math]}
    stages:
      - {name: inherits}
      - {name: all, principles: []}
      - {name: names, principles: [harm]}
    """
    )
    assert [s.principles for s in own.stages] == [("accuracy",), (), ("harm",)]


def test_as_many_shots_as_every_page_has_exemplars(plan):
    own = plan(OWN.replace("examples: 200", f"examples: 200\n        shots: {plans.EXEMPLARS}"))
    prompter = Prompter(own.stages[0].shots)
    [principle] = load_constitution(ROOT / "constitution.yaml").pick(0, 1)
    assert prompter.answer("Q") and prompter.critique("Q", "A", principle)
    assert prompter.revision("Q", "A", []) and prompter.judge("Q", "A", "B", principle)
    with pytest.raises(AssertionError, match="exemplars"):
        Prompter(plans.EXEMPLARS + 1).judge("Q", "A", "B", principle)


def test_tasks_of_plans_written_for_other_programs_have_our_names(plan):
    own = plan(OWN.replace("tasks: [math]", "tasks: [math_problems]"))
    assert own.stages[0].tasks == ("math",) and own.hash == plan(OWN).hash
    with pytest.raises(UserError, match="stage sums: tasks: .*different names"):
        plan(OWN.replace("tasks: [math]", "tasks: [math_problems, math]"))


def test_a_whole_number_stays_one(plan):
    """2 and 2.0 would be two plans by their hashes."""
    own = plan(OWN.replace("examples: 200", "examples: 200\n        passes: 2\n        limits: {length: 2}"))
    assert type(own.stages[0].passes) is type(own.stages[0].limits.length) is int


# ---- beside the constitution ----


def test_all_that_the_constitution_does_not_have_is_named_before_anything_runs(plan):
    known = load_constitution(ROOT / "constitution.yaml")
    own = plan(
        """
    principles: [acuracy, harm]
    every: {examples: 20, tasks: [math]}
    stages:
      - {name: inherits}
      - {name: few, principles: [harm, privcy, zzz], per_answer: 2}
      - {name: many, principles: [], per_answer: 16}
      - {name: right, principles: [law], per_answer: 1}
      - {name: whole, principles: [], per_answer: 15}
    """
    )
    with pytest.raises(UserError) as error:
        plans.check(own, known)
    head, *mistakes = str(error.value).splitlines()
    assert "the plan own does not fit" in head and "constitution.yaml" in head
    ids = ", ".join(p.id for p in known.principles)
    assert mistakes == [
        "  - the plan: principles: there is no principle 'acuracy' (did you mean 'accuracy'?); "
        f"the principles are {ids}",
        "  - stage few: principles: there is no principle 'privcy' (did you mean 'privacy'?); "
        f"the principles are {ids}",
        f"  - stage few: principles: there is no principle 'zzz'; the principles are {ids}",
        "  - stage many: per_answer: 16 of 15 principles; ask for no more than that",
    ]


def test_the_hash_follows_what_results_depend_on(plan):
    text = dedent(OWN)
    same = plan("# a comment\n" + text.replace("Sums first", "First sums"))
    other = plan(text.replace("0.9", "0.8"))
    assert plan(text).hash == same.hash != other.hash
    scaled = plan(text + "scales: {sandbox: {tests: 5}}")
    assert scaled.hash == same.hash != scaled.scaled("sandbox").hash


def test_a_plan_as_data_is_json_without_its_scales():
    facts = json.loads(json.dumps(plans.load("progressive").as_dict()))
    assert facts["stages"][0]["gate"]["success"] == 0.9 and "scales" not in facts
    assert facts["stages"][0]["limits"].keys() == {f for f in Limits.__dataclass_fields__}


# ---- mistakes ----

SUMS, REST = "name: sums", "name: rest"
MISTAKES = [
    ("tasks: [math]", "tasks: [maths]", r"stage sums: tasks: there is no task 'maths' \(did you mean 'math'"),
    ("tasks: [math]", "tasks: []", "stage sums: tasks: .* must be not empty"),
    ("tasks: [math]", "tasks: [math, math]", "stage sums: tasks: .*different names"),
    ("tasks: [math]", "taks: [math]", r"unknown key 'taks' \(did you mean 'tasks'\?\)"),
    ("tasks: [math]", "loss: dpo", "stage sums: tasks: is missing"),
    ("examples: 200", "examples: 0", "stage sums: examples: 0 must be a whole number of at least 1"),
    ("examples: 200", "examples: many", "stage sums: examples: 'many' must be"),
    ("examples: 200", "examples: true", "stage sums: examples: True must be"),
    ("examples: 1000", "examples: 9", "stage rest: examples: 9 for 10 tasks"),
    ("examples: 200", "examples: '3'", "stage sums: examples: '3' must be a whole number"),
    ("examples: 200", "examples: 3.0", "stage sums: examples: 3.0 must be a whole number"),
    ("success: 0.9", "success: true", "stage sums: gate: success: True must be a number from 0 to 1"),
    ("success: 0.9", "safer: 1", "stage sums: gate: safer: 1 must be true or false"),
    (SUMS, "name: sums\n    limits: {critc: 1}", r"limits: unknown key 'critc' \(did you mean 'critic'"),
    ("examples: 200", "passes: 2", "stage sums: examples: is missing"),
    ("success: 0.9", "success: 90", "stage sums: gate: success: 90 must be a number from 0 to 1"),
    ("success: 0.9", "success: .nan", "stage sums: gate: success: nan must be"),
    ("success: 0.9", "kept: -1", "stage sums: gate: kept: -1 must be a number from 0 to 1 .or null"),
    ("of: average", "of: all", "stage rest: gate: of: 'all' must be each, average"),
    ("gate: {success: 0.9}", "gate: 0.9", "stage sums: gate: is a number; it must be a mapping"),
    (REST, SUMS, "stage sums: name: an earlier stage is called 'sums', too"),
    (SUMS, "name: my sums", "name: 'my sums' must name a directory"),
    (SUMS, "name: sums.seed1", "name: 'sums.seed1' must name a directory"),
    (SUMS, "name: ../sums", r"name: '\.\./sums' must name a directory"),
    (SUMS, "name: 3", "stage 1: name: 3 must name a directory"),
    (SUMS, "name: [a]", r"stage 1: name: \['a'\] must name a directory"),
    (SUMS, "name: {a: b}", "stage 1: name: {'a': 'b'} must name a directory"),
    (f"- {SUMS}\n    tasks", "- tasks", "stage 1: name: None must name a directory"),
    (SUMS, "name: best", "name: 'best' means something else in a plan"),
    (SUMS, "name: sums\n    roles: {critic: rest}", "roles: critic: 'rest' is none of base, predecessor"),
    (SUMS, "name: sums\n    roles: {critic: sums}", "roles: critic: 'sums' is none of"),
    (SUMS, "name: sums\n    roles: {judge: best}", "roles: judge: 'best' is none of"),
    (SUMS, "name: sums\n    roles: {crtic: base}", r"roles: unknown key 'crtic' \(did you mean 'critic'"),
    (SUMS, "name: sums\n    roles: [base]", "roles: is a list"),
    (SUMS, "name: sums\n    loss: ppo", "loss: 'ppo' must be dpo"),
    (SUMS, "name: sums\n    bits: 5", "bits: 5 must be 4, 8, 16, null"),
    (SUMS, "name: sums\n    bits: 4.0", "bits: 4.0 must be 4, 8, 16, null"),
    (SUMS, "name: sums\n    on_limit: go", "on_limit: 'go' must be stop, rollback"),
    (SUMS, "name: sums\n    limits: {length: 0.5}", "limits: length: 0.5 must be a number of at least 1"),
    (SUMS, "name: sums\n    limits: {length: .inf}", "length: inf must be a finite number of at least 1"),
    (SUMS, "name: sums\n    anchors: 9", "anchors: 9 must be a number from 0 to 4"),
    (SUMS, "name: sums\n    passes: .inf", "sums: passes: inf must be a finite number of at least 0.01"),
    (SUMS, "name: sums\n    passes: .nan", "sums: passes: nan must be a number of at least 0.01"),
    (SUMS, "name: sums\n    passes: -.inf", "sums: passes: -inf must be a number of at least 0.01"),
    (SUMS, "name: sums\n    shots: 7", "sums: shots: 7 must be a whole number from 0 to 6 .or null"),
    (SUMS, "name: sums\n    principles: accuracy", "principles: 'accuracy' must be a list"),
    (SUMS, "name: sums\n    principles: [harm]\n    per_answer: 2", "per_answer: 2 of 1 principles"),
    ("stages:", "every: {exmples: 3}\nstages:", r"unknown key 'exmples' \(did you mean 'examples'"),
    ("stages:", "every: 3\nstages:", "3 stands where a mapping"),
    ("stages:", "tests: 0\nstages:", "tests: 0 must be a whole number of at least 1"),
    ("stages:", "steges: 1\nstages:", r"the plan: unknown key 'steges' \(did you mean 'stages'"),
    ("stages:", "scales: {sandbx: {tests: 2}}\nstages:", r"'sandbx' is no model .*did you mean 'sandbox'"),
    ("stages:", "scales: {sandbox: {sms: {}}}\nstages:", r"no stage 'sms' \(did you mean 'sums'"),
    ("stages:", "scales: {sandbox: {sums: {examples: 0}}}\nstages:", "sandbox, stage sums: examples: 0"),
    ("stages:", "scales: {sandbox: {sums: {name: b}}}\nstages:", "stage sums: unknown key 'name'"),
    ("stages:", "scales: [sandbox]\nstages:", "scales: must be a mapping"),
    ("title: Sums first", "title: 3", "the plan: title: 3 must be a text"),
    ("title: Sums first", "title: a\ntitle: b", "the key 'title' stands twice"),
    ("title: Sums first", "title: [", "not valid YAML"),
]


@pytest.mark.parametrize("old, new, says", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_what_would_be_right(plan, old, new, says):
    text = dedent(OWN)
    assert old in text
    with pytest.raises(UserError, match=says) as error:
        plan(text.replace(old, new, 1))
    assert "own.yaml" in str(error.value)


@pytest.mark.parametrize("text", ["", "- a", "3", "stages: []", "stages: {}", "stages: [3]", "title: x"])
def test_what_is_no_plan(plan, text):
    with pytest.raises(UserError, match="(?s)own.yaml.*(mapping|stages)"):
        plan(text)


def test_mistakes_of_different_kinds_are_told_together(plan):
    with pytest.raises(UserError) as error:
        plan(
            """
    title: 3
    stages:
      - {name: sums, tasks: [maths, sum], examples: 9}
      - {name: rest, tasks: all, examples: 9, gate: {safr: true, off: 1}, loss: ppo,
         roles: {judge: best, critic: rest}}
    scales: {sandbx: {}}
    """
        )
    *_, told = str(error.value).partition("\n")
    for said in (
        "scales: 'sandbx'", "the plan: title: 3", "sums: tasks: there is no task 'maths'", "no task 'sum'",
        "rest: examples: 9 for 10 tasks", "rest: gate: unknown key 'safr' (did you mean 'safer'?)",
        "rest: gate: unknown key 'False'",
        "rest: roles: judge: 'best'", "rest: roles: critic: 'rest'", "rest: loss: 'ppo' must be dpo",
    ):  # fmt: skip
        assert said in told
    assert told.count("\n") == 9


def test_all_mistakes_are_listed_once(plan):
    text = dedent(OWN).replace("examples: 200", "examples: 0").replace("of: average", "of: some")
    with pytest.raises(UserError) as error:
        plan(text + "scales: {sandbox: {tests: 3}}")
    assert len(re.findall("^  - ", str(error.value), re.MULTILINE)) == 2


@pytest.mark.parametrize("name", ["mvp", "prompts", "my.plan", "A"])
def test_a_plans_name_is_its_directory_and_must_be_free(plan, name):
    with pytest.raises(UserError, match="names its directory"):
        plan(OWN, name)


def test_an_unknown_plan():
    with pytest.raises(UserError, match="no plan 'progresive' .did you mean 'progressive'.*six-stage"):
        plans.load("progresive")
    with pytest.raises(UserError, match="no plan at .*nowhere.yaml"):
        plans.load("nowhere.yaml")
