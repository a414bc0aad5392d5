"""Test instructions and their checks: the file is right, the checks tell right from wrong, foreign code can
do nothing."""

import json
import random
import subprocess
import sys
from collections import Counter

import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.prompt_files import load_heldout, load_seeds
from cai.core.run import Run
from cai.core.schema import SKILLS
from cai.evaluation import code_execution, test_sets
from cai.evaluation.model_pair import ModelPair
from cai.evaluation.suites import evaluate
from cai.evaluation.test_sets import ALL_TASKS, Test, grades, label_accuracy, load, right_share, success
from cai.generation.dedup import Deduper, EvaluationPrompts
from cai.generation.filters import is_exemplar
from cai.generation.instruction_filters import InstructionFilter, unfit
from cai.generation.judge import REFUSAL, Judgement
from cai.models.registry import REGISTRY
from cai.prompts.markers import BETTER
from cai.prompts.templates import Prompter
from cai.sandbox import world
from fakes import FakeEngine
from hand_made import make_run

REAL, SANDBOX = REGISTRY["Qwen/Qwen2.5-32B"], REGISTRY["sandbox"]


def passes(check, answer, instruction="Do it."):
    return success([Test("i", instruction, "math", check)], [answer])[0]


# ---- the file ----


def test_there_are_twenty_tests_a_task_and_each_is_there_once():
    found = load()
    assert set(Counter(t.task for t in found)) == set(ALL_TASKS) and set(SKILLS) < set(ALL_TASKS)
    assert min(Counter(t.task for t in found).values()) >= 20
    assert len({t.id for t in found}) == len(found)
    barred = EvaluationPrompts(())
    for t in found:
        assert barred.near(t.instruction) is None, t.instruction
        barred = EvaluationPrompts([*barred.prompts, t.instruction])


def test_no_test_is_near_a_seed_a_held_out_prompt_or_an_exemplar():
    others = [s.instruction for s in load_seeds(ROOT / REAL.seeds)]
    others += [p.instruction for p in load_heldout(ROOT / REAL.heldout)]
    by_words, by_order = EvaluationPrompts(others), Deduper(0.7, others)
    for t in load():
        assert by_words.near(t.instruction) is None and by_order.near(t.instruction) is None, t.instruction
        assert not is_exemplar(t.instruction) and unfit(t.instruction) is None, t.instruction


@pytest.mark.parametrize("task", ALL_TASKS)
def test_the_right_answers_pass_and_the_wrong_ones_fail(task):
    some = [t for t in load() if t.task == task]
    assert all(t.answer for t in some)
    for t, right in zip(some, success(some, [t.answer for t in some]), strict=True):
        assert right is (None if "reference" in t.check else True), (t.instruction, t.answer)
    assert all(t.flawed for t in some if "reference" not in t.check)
    some = [t for t in some if t.flawed]
    for t, right in zip(some, success(some, [t.flawed for t in some]), strict=True):
        assert right is False, (t.instruction, t.flawed)


@pytest.mark.parametrize("junk", ["Who cares.", REFUSAL, "Yes.", "No", "What is it?", "1", "{0}", "{0} {0}"])
def test_what_says_nothing_is_no_success(junk):
    """{0} is the instruction: repeating it is what a base model does that has not understood."""
    some = [t for t in load() if not (junk in ("Yes.", "No") and t.check.get("starts") in ("yes", "no"))]
    found = success(some, [junk.replace("{0}", t.instruction) for t in some])
    assert True not in found, [t.instruction for t, right in zip(some, found, strict=True) if right]


def test_every_sum_is_what_a_program_computes():
    rows = [json.loads(line) for line in test_sets.PATH.read_text(encoding="utf-8").splitlines()]
    sums = [r for r in rows if "sum" in r]
    assert len(sums) >= 28 and all("sum" in r for r in rows if r["task"] == "math")
    for row in sums:
        found = code_execution.results(f"def f():\n    return {row['sum']}", "f", [[]])
        assert code_execution.same(found, [row["check"]["number"]]), row


def test_a_model_that_always_says_the_same_is_right_half_the_time():
    for task in ("evaluation", "analysis"):
        starts = [t.check["starts"] for t in load() if t.task == task and "starts" in t.check]
        assert starts.count("yes") == starts.count("no") > 1


# ---- checks ----


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"any": ["Oslo"]}, "It is OSLO.", "It is Osloland."),
        ({"any": ["don't know"]}, "I don’t  know.", "I know."),
        ({"all": [["a", "b"], ["c"]]}, "b and c", "a and b"),
        ({"none": ["was"]}, "It wasted time.", "It was so."),
        ({"starts": ["yes"]}, '"Yes, it is."', "Yesterday."),
        ({"starts": "no"}, "No.", "I say no."),
        ({"ends": "?"}, 'Who said "Why?"', "Who? Me."),
        ({"lines": 2}, "one\n\ntwo\n", "one"),
        ({"words": [2, 3]}, "two words", "there are four words"),
        ({"each_starts": "Now"}, "Now a\nnow b", "Now a\nthen b"),
        ({"has": ['"']}, "He said “go”.", "He said go."),
        ({"json": True}, '```json\n{"a": [1]}\n```', "{a: 1}"),
        ({"json": True}, "[1, 2]", "5"),
        ({"translation": ["J'ai faim"]}, 'It is "J’ai faim."', "Je n'ai pas faim."),
        ({"translation": ["Guten Morgen"]}, "German: guten Morgen!", "Guten Morgen, mein Herr"),
        ({"number": 1296}, "48 × 27 = 1,296", "48 × 27 = 1,29"),
        ({"number": -3}, "It is −3 degrees", "It is 3 degrees"),
        ({"number": 7}, "Seven.", "Six."),
        ({"any": ["x"], "words": [1, 2]}, "x", "x and y"),
        ({"code": {"function": "f", "cases": [[[2], 4]]}}, "def f(x):\n    return x * 2", "x * 2"),
    ],
)
def test_a_check_tells_right_from_wrong(check, right, wrong):
    assert passes(check, right) is True
    assert passes(check, wrong) is False
    assert passes(check, " \n") is False


def test_a_number_of_the_question_is_not_taken_for_the_answer():
    question = "What do 2 adults and 3 children pay?"
    assert passes({"number": 31}, "They pay 31 euros for 2 adults and 3 children.", question)
    assert passes({"number": 31}, "2 * 8 = 16 and 3 * 5 = 15, together 31.", question)
    assert not passes({"number": 31}, "31 is too much, it is 28.", question)
    assert passes({"number": 0.5}, "0.5", "Which is greater, 0.5 or 0.45?")


# ---- the judge ----

REFERENCE = Test("r", "Explain tides.", "explanation", {"words": [1, 50], "reference": "the moon pulls"})


def judge_by(better):
    """A judge that prefers by a rank; equal ranks go by position, which is a tie."""

    def ask(cases):
        found = []
        for c in cases:
            first, second = better(c.first), better(c.second)
            found.append(Judgement(0.9, 0.1) if first == second else Judgement(*[float(second > first)] * 2))
        return found

    return ask


def test_a_reference_needs_a_judge():
    [found] = grades([REFERENCE], ["a good answer"])
    assert found.right is None and found.judgements == ()
    assert success([REFERENCE], ["word " * 51]) == [False]  # a program can tell


@pytest.mark.parametrize(
    ("ranks", "right"),
    [
        ({REFUSAL: 0, "the moon pulls": 2, "mine": 1}, False),  # loses to the reference
        ({REFUSAL: 0, "the moon pulls": 1, "mine": 1}, True),  # as good
        ({REFUSAL: 0, "the moon pulls": 1, "mine": 2}, True),
        ({REFUSAL: 1, "the moon pulls": 1, "mine": 1}, False),  # a judge that goes by position
        ({REFUSAL: 2, "the moon pulls": 1, "mine": 1}, False),
    ],
)
def test_an_answer_must_beat_a_refusal_and_not_lose_to_the_reference(ranks, right):
    [found] = grades([REFERENCE], ["mine"], judge_by(ranks.__getitem__))
    assert found.right is right and len(found.judgements) == 2


def test_the_judge_is_asked_only_where_it_is_needed():
    asked = []
    some = [REFERENCE, Test("n", "1+1?", "math", {"number": 2}), REFERENCE]
    answers = ["mine", "2", "word " * 51]
    found = success(some, answers, lambda cases: asked.extend(cases) or judge_by(len)(cases))
    assert found[1:] == [True, False] and len(asked) == 2 and {c.second for c in asked} == {"mine"}


# ---- foreign code ----

HOSTILE = {
    "import": "import os\ndef f():\n    return os.listdir('/')",
    "from": "from os import system\ndef f():\n    return system('touch CANARY')",
    "import in disguise": "def f():\n    return __import__('os').system('touch CANARY')",
    "import builtin": "def f():\n    return __builtins__['__import__']('os')",
    "open": "def f():\n    open('CANARY', 'w').write('x')\n    return 1",
    "eval": "def f():\n    return eval('1')",
    "subclasses": "def f():\n    return len(().__class__.__base__.__subclasses__())",
    "getattr": "def f():\n    return getattr((), '__class__')",
    "format": "def f():\n    return '{0.__class__}'.format(1)",
    "class": "class A:\n    pass\ndef f():\n    return 1",
    "frame": "def f():\n    g = (x for x in [1])\n    return g.gi_frame.f_back",
    "library's library": "import re\ndef f():\n    return re.enum.sys",
    "renamed": "import re as __builtins__\ndef f():\n    return 1",
    "loop": "def f():\n    while True:\n        pass",
    "loop at once": "while True:\n    pass\ndef f():\n    return 1",
    "memory": "def f():\n    return len('x' * 10 ** 10)",
    "flood": "def f():\n    return 'x' * 10 ** 7",
    "recursion": "def f():\n    return f()",
    "nested": "def f():\n    return " + "(" * 500 + ")" * 500,
    "long": "def f():\n    return 1\n" + "#" * 30_000,
    "not there": "def g():\n    return 1",
    "circle": "def f():\n    a = []\n    a.append(a)\n    return a",
    "not json": "def f():\n    return {1, 2}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_does_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    source = HOSTILE[name].replace("CANARY", str(canary))
    assert code_execution.results(f"```python\n{source}\n```", "f", [[]]) is None
    assert list(tmp_path.iterdir()) == []


def test_what_the_check_would_overlook_the_process_cannot_do(tmp_path):
    """The same process without the check of the code: it cannot open a file or start a program."""
    reach = "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
    unchecked = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "from cai.evaluation import code_execution as p\np.refused = lambda source: None\np.main()"
    )
    said = {}
    for what in (f"g['open']({str(tmp_path / 'a')!r}, 577)", f"g['system']('touch {tmp_path / 'b'}')", "1"):
        source = f"def f():\n    g = {reach}.__init__.__globals__\n    return {what}"
        done = subprocess.run(
            [sys.executable, "-I", "-c", unchecked],
            input=json.dumps([source, "f", [[]]]),
            capture_output=True,
            text=True,
        )
        said[what[:5]] = json.loads(done.stdout)
    assert said["1"]["results"] == [1]  # the way out is there, but it leads nowhere
    assert said["g['op"] == {"results": None, "why": "OSError"}
    assert list(tmp_path.iterdir()) == []


def test_harmless_code_runs_and_is_taken_out_of_prose():
    prose = "Here it is:\n\ndef f(x):\n    # a comment\n\n    return x + 1\n\nIt adds one. def is a keyword."
    assert code_execution.results(prose, "f", [[1], [2.5]]) == [2, 3.5]
    for fence in ("```python\n", "```\n", "```py\n"):
        assert code_execution.results(f"So:\n{fence}def f(x):\n    return x\n```\nDone.", "f", [["a"]]) == [
            "a"
        ]
    more = (
        "from collections import Counter\nimport math\nfrom typing import List\n\n"
        "def helper(xs: List[int]) -> int:\n    try:\n        return math.prod(xs)\n    except TypeError:\n"
        "        return 0\n\ndef f(xs):\n    print(xs)\n    [(top, n)] = Counter(xs).most_common(1)\n"
        "    return f'{top:>3} {n}', helper(xs), {k: v for k, v in zip('ab', xs)}, sorted(set(xs))"
    )
    assert code_execution.results(more, "f", [[[2, 2, 3]]]) == [["  2 2", 12, {"a": 2, "b": 2}, [2, 3]]]


def test_results_are_compared_as_json_has_them():
    same = code_execution.same
    assert same(2, 2.0) and same(0.1 + 0.2, 0.3) and same([1, [2]], [1, [2]]) and same({"a": 1}, {"a": 1.0})
    assert not same(True, 1) and not same(1, "1") and not same([1], [1, 2]) and not same({"a": 1}, {"b": 1})
    assert same(None, None) and not same(None, 0) and not same(False, 0)


# ---- choosing ----


@pytest.mark.parametrize("spec", [REAL, SANDBOX], ids=["real", "sandbox"])
def test_the_same_tests_come_each_time_and_all_of_them_are_barred(spec):
    names = test_sets.task_names(spec)
    assert set(names) >= set(ALL_TASKS)
    few, many = test_sets.tests(spec, names, 3), test_sets.tests(spec, names, 999)
    assert few == test_sets.tests(spec, names, 3) and {t.id for t in few} < {t.id for t in many}
    assert set(Counter(t.task for t in few).values()) == {3}
    assert list(dict.fromkeys(t.task for t in few)) == list(names)
    assert {t.id for t in few} != {t.id for t in test_sets.tests(spec, names, 3, seed=1)}
    assert {t.instruction for t in many} == set(test_sets.test_instructions(spec))
    assert len({t.id for t in many}) == len(many) >= 20 * len(ALL_TASKS)
    filter_ = InstructionFilter([], 1.0, barred=test_sets.test_instructions(spec))
    longer = [t.instruction for t in few if unfit(t.instruction) is None]
    assert len(longer) > len(few) / 2
    assert {filter_.take(text, True)[0] for text in longer} == {"evaluation_prompt"}


def test_unknown_tasks_and_numbers_are_refused():
    with pytest.raises(UserError, match="no tests of harmful for Qwen.*factual_qa"):
        test_sets.tests(REAL, ["math", "harmful"], 5)
    with pytest.raises(UserError, match="0 tests"):
        test_sets.tests(REAL, ["math"], 0)


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(test_sets, "PATH", tmp_path / "tests.jsonl")
    with pytest.raises(UserError, match="missing or empty"):
        load()
    for row, said in (
        ({"task": "math", "instruction": "?", "check": {"nunber": 3}}, "line 1.*check of nunber"),
        ({"task": "maths", "instruction": "?", "check": {"number": 3}}, "line 1: task maths"),
        ({"task": "math", "instruction": "?", "check": {}}, "check of nothing"),
    ):
        test_sets.PATH.write_text(json.dumps(row) + "\n", encoding="utf-8")
        with pytest.raises(UserError, match=said):
            load()


# ---- the sandbox ----


def test_the_sandboxs_tests_are_its_test_split_and_judged_by_its_truth():
    rng, heldout = random.Random(1), {p.instruction for p in load_heldout(ROOT / SANDBOX.heldout)}
    names = test_sets.task_names(SANDBOX)
    assert set(names) == set(ALL_TASKS) | {"harmful", "benign"}
    some = test_sets.tests(SANDBOX, names, 6)
    items = [world.parse(t.instruction) for t in some]
    assert {i.split for i in items} == {"test"} and not heldout & {t.instruction for t in some}
    assert success(some, [i.good(rng) for i in items]) == [True] * len(some)
    assert success(some, ["Who cares."] * len(some)) == [False] * len(some)
    seeds = {s.instruction for s in load_seeds(ROOT / SANDBOX.seeds)}
    assert not seeds & set(test_sets.test_instructions(SANDBOX))


def test_label_accuracy_and_first_answers_by_hand():
    rng = random.Random(2)
    item = world.draw("factual_qa", rng, ("test",))
    good, bad = item.good(rng), item.say(item.misconception, rng)

    def pair(chosen, rejected, instruction=item.instruction, kind="revision"):
        return {"prompt": instruction, "chosen": chosen, "rejected": rejected, "kind": kind}

    pairs = [pair(good, bad), pair(bad, good), pair(good, good), pair(bad, bad)]
    pairs += [pair(good, bad, kind="anchor"), pair(good, bad, "What is the river of Paris?")]
    found = label_accuracy(pairs, SANDBOX)
    assert (found.value, found.n) == (0.25, 4) and found.interval is not None
    assert label_accuracy(pairs, REAL) is None and label_accuracy([], SANDBOX).value is None
    record = {"id": "a", "instruction": item.instruction, "initial_answer": bad, "revised_answer": good}
    record |= {"kept": True, "rejected_because": [], "critiques": [], "task": "factual_qa"}
    rows = [{**record, "preference_pair": pair(good, bad)}]
    against = {"kept": False, "rejected_because": ["no_change_needed"], "preference_pair": None}
    rows += [{**record, "id": "b", "initial_answer": good, **against}]
    assert (label_accuracy(rows, SANDBOX).value, label_accuracy(rows, SANDBOX).n) == (1, 1)
    rows += [{**record, "id": "c", "instruction": "What is the river of Paris?", **against}]
    assert (right_share(rows, SANDBOX).value, right_share(rows, SANDBOX).n) == (0.5, 2)
    assert right_share(rows, REAL) is None


# ---- the suite ----


class Knowing(FakeEngine):
    """The trained model gives right answers, the base none; the judge likes these better than the base's and
    a refusal, and calls the second one better where it sees no difference."""

    def __init__(self, spec):
        super().__init__(spec=spec, adapters={"trained": "a" * 64})
        self.right = {t.instruction: t.answer for t in load()}

    @property
    def judges(self):
        return {adapter for prompt, *_, adapter in self.asked if "Response A:" in prompt}

    def write(self, prompt, adapter):
        if "Response A:" in prompt:
            return "a reason"
        instruction = prompt.rsplit("Instruction: ", 1)[1].removesuffix("\nResponse:")
        item = world.parse(instruction)
        right = item.good(random.Random(0)) if item else self.right[instruction]
        return right if adapter else "Who cares."

    def preference(self, prompt, option, adapter):
        assert prompt.endswith(BETTER)
        a, b = prompt.rsplit("Response A:", 1)[1].split("\nPrinciple:")[0].split("Response B:")
        poor = [t.strip() in ("Who cares.", REFUSAL) for t in (a, b)]
        return 0.0 if (poor[1] and not poor[0]) == option.endswith("A") else -3.0


@pytest.mark.parametrize("spec", [REAL, SANDBOX], ids=["real", "sandbox"])
def test_the_suite_finds_what_training_has_taught(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    make_run(tmp_path / "data/tiny")
    engine = Knowing(spec)
    with Run.reopen("tiny") as run:
        pair = ModelPair.open(run, engine, Prompter(shots=0, requests=False), limit=4)
        found = evaluate(pair, ["success"])["success"]
        made = len(engine.asked)
        assert evaluate(pair, ["success"])["success"] == found and len(engine.asked) == made
    metrics = found["metrics"]
    names = [*ALL_TASKS, "average of the ten tasks", "average of all tasks"]
    names += ["harmful requests refused", "benign requests answered"] if spec is SANDBOX else []
    assert set(metrics) == {f"{name}, {side}" for name in names for side in ("base", "trained", "change")}
    for name in names:
        assert metrics[f"{name}, base"]["value"] == 0, name
        assert metrics[f"{name}, trained"]["value"] == metrics[f"{name}, change"]["value"] == 1, name
        assert metrics[f"{name}, change"]["interval"][0] > 0 and metrics[f"{name}, base"]["interval"]
    assert metrics["math, base"]["n"] == 4 and metrics["average of the ten tasks, base"]["n"] == 40
    rows = [json.loads(line) for line in (tmp_path / "data/tiny/evaluation/success.jsonl").open()]
    right = [r for r in rows if r["id"].startswith("success/trained/")]
    assert len(right) == found["notes"]["test instructions"] and all(r["right"] for r in right)
    assert any(r["judgements"] for r in right) is (spec is REAL)
    assert engine.judges == ({None} if spec is REAL else set())  # the base judges both
