"""Records as they finish: whatever the order, the number in flight and the moment of a kill."""

import asyncio
import json
import random
import re
import signal

import pytest
from cai.core import jsonl
from cai.core.errors import BudgetReached, UserError
from cai.core.files import ROOT
from cai.core.ledger import LEDGER_KEYS, STEP, Usage
from cai.core.run import Run
from cai.core.schema import FORMAT, content_id
from cai.costs.budget import Budget
from cai.costs.rates import rates
from cai.costs.units import Weights
from cai.generation.example import examples_of
from cai.generation.guard import Guard
from cai.generation.loop import Loop
from cai.generation.records import as_finished, in_shard, make_records, read_records
from cai.models.registry import REGISTRY
from cai.prompts.constitution import load
from cai.prompts.markers import CHANGE, KEEP
from cai.prompts.templates import Prompter
from fakes import FakeEngine

CONSTITUTION, N = load(ROOT / "constitution.yaml"), 23
SETTINGS = {"model": "sandbox", "bits": 16, "principles": 2, "seed": 0}


class Killed(BaseException):
    """In place of SIGKILL."""


def answers(prompt):
    number = int(re.findall(r"number (\d+)", prompt)[-1])
    verdict = KEEP if number % 5 == 0 else CHANGE
    return {
        "Response:": f"Thing number {number} is made of tin.",
        "Critique:": f"Thing number {number} is of wood, and not of tin. {verdict}",
        "Revision:": f"Thing number {number} was always made of wood.",
    }[prompt.rsplit("\n", 1)[-1]]


def question(number):
    return f"What is the thing number {number} made of?"


def rows_of(n=N):
    texts = map(question, range(n))
    return [{"id": content_id(t), "instruction": t, "task": "math", "source": "file"} for t in texts]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(name, engine, ...): a run's records; (records, its directory)"""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))

    def made(name, engine=None, *, n=N, budget=None, shard=(1, 1), guard=None):
        with Run.open(name, SETTINGS) as run:
            run.hourly_rate = 3600.0
            run.record(model="sandbox", device="cpu")
            jsonl.complete(run.data / "instructions.jsonl", rows_of(n), {"id": str})
            engine = engine or FakeEngine(answers)
            loop = Loop(engine, Prompter(0, False), CONSTITUTION, 0, 2, judged=False, guard=guard)
            run.budget = budget(run) if budget else None
            return make_records(run, loop, examples_of(rows_of(n)), shard=shard), run.data

    return made


def slow(seed):
    return seed % 7


def lines(data):
    return (data / "records.jsonl").read_text().splitlines()


def slower(seed):
    return random.Random(seed).randrange(40)


@pytest.mark.parametrize("capacity", [1, 3, 64])
@pytest.mark.parametrize("patience", [slow, slower])
def test_the_same_records_whatever_the_order_and_the_number_in_flight(make, capacity, patience):
    plain, data = make("plain", FakeEngine(answers, capacity=1))
    assert [json.loads(line) for line in lines(data)] == plain
    found, other = make("other", FakeEngine(answers, capacity=capacity, patience=patience))
    assert found == plain == read_records(other)
    assert sorted(lines(other)) == sorted(lines(data))
    assert [r["instruction"] for r in found] == [question(n) for n in range(N)]
    assert (lines(other) == lines(data)) == (capacity == 1)  # else they finish in an order of their own


@pytest.mark.parametrize("after", range(N))
def test_a_kill_after_any_record_loses_only_what_is_in_flight(make, monkeypatch, after):
    engine = FakeEngine(answers, capacity=4, patience=slow)
    whole, _ = make("whole", FakeEngine(answers))
    append, counts = jsonl.append, []

    def dying(path, rows):
        append(path, rows)
        if path.name == "records.jsonl":
            counts.append(len(rows))
            if sum(counts) > after:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "append", dying)
        with pytest.raises(Killed):
            make("killed", engine)
    begun = {n for p, *_ in engine.asked for n in re.findall(r"number (\d+)", p)}
    with Run.open("killed", SETTINGS) as run:
        there = {r["id"] for r in read_records(run.data)}
    assert len(there) == sum(counts) > after and len(begun) - len(there) <= 4
    again = FakeEngine(answers, capacity=4, patience=slow)
    found, data = make("killed", again)
    assert found == whole and len(lines(data)) == N
    asked = {content_id(question(n)) for p, *_ in again.asked for n in re.findall(r"number (\d+)", p)}
    assert asked == {r["id"] for r in whole} - there  # nothing is made twice, nothing is missing
    make("killed", untouched := FakeEngine(answers))
    assert not untouched.asked


def test_shards_are_merged_by_reading(make):
    whole, _ = make("whole")
    parts = []
    for number in (3, 1, 2):
        part, data = make("parts", shard=(number, 3))
        parts += part
        assert all(in_shard(r["id"], number, 3) for r in part)
    assert sorted(r["id"] for r in parts) == sorted(r["id"] for r in whole)
    assert read_records(data) == whole
    assert {p.name for p in data.glob("records*")} == {f"records-00{n}-of-003.jsonl" for n in (1, 2, 3)}
    with pytest.raises(UserError, match="this shard has no instructions"):
        make("few", n=1, shard=(1 + in_shard(content_id(question(0)), 1, 2), 2))


def test_records_of_another_format_are_refused_and_the_command_is_named(make):
    _, data = make("a")
    path = data / "records.jsonl"
    rows = [json.loads(line) for line in lines(data)]
    for wrong, said, way_out in ((None, 1, ".*runs.py --convert a "), (3, 3, "a newer one")):
        bad = {k: v for k, v in rows[1].items() if k != "format"} | ({"format": wrong} if wrong else {})
        path.write_text("".join(json.dumps(r) + "\n" for r in (rows[0], bad, *rows[2:])))
        with pytest.raises(UserError, match=rf"line 2 is of format {said}.*{FORMAT}: {way_out}"):
            read_records(data)


# ---- what goes wrong in the middle ----


class Failing(FakeEngine):
    """Raises an error for the example of one number."""

    def __init__(self, number, error, **more):
        super().__init__(self.answer, **more)
        self.number, self.error = number, error

    def answer(self, prompt):
        if question(self.number) in prompt and prompt.endswith("Critique:"):
            raise self.error
        return answers(prompt)


@pytest.mark.parametrize("capacity", [1, 6, 64])
def test_an_error_in_one_example_reaches_the_caller_and_what_was_finished_stays(make, capacity, caplog):
    whole, _ = make("whole")
    with pytest.raises(UserError, match="too hot"):
        make("a", Failing(17, UserError("too hot"), capacity=capacity))
    found, data = make("a")
    assert found == whole and len(lines(data)) == N and not caplog.records


def test_those_that_finish_beside_one_that_fails_are_on_the_disk(make):
    """In one round of the event loop: all are as quick."""
    engine = Failing(4, UserError("no"), capacity=N)
    engine.answers = lambda p: Failing.answer(engine, p) if "number 4 " in p else KEPT(p)
    with pytest.raises(UserError):
        make("a", engine)
    before = len(engine.asked)
    engine = FakeEngine(KEPT)
    _, data = make("a", engine)
    assert before == 3 * N and len(lines(data)) == N
    assert len(engine.asked) < 3 * N / 2


def KEPT(prompt):
    return f"Thing {KEEP}" if prompt.endswith("Critique:") else answers(prompt)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Killed()])
def test_an_interrupted_loop_has_on_the_disk_what_was_finished_and_in_the_ledger_what_was_spent(
    make, error, tmp_path
):
    whole, _ = make("whole")
    with pytest.raises(type(error)):
        make("a", Failing(17, error, capacity=6, patience=slow))
    data = tmp_path / "data/a"
    there = read_records(data)
    assert 10 <= len(there) < N and all(r in whole for r in there)
    rows = [r for r in jsonl.read(tmp_path / "logs/ledger.jsonl", LEDGER_KEYS) if r["run"] == "a"]
    totals = json.loads((data / "run.json").read_text())["totals"]
    assert sum(r["dollars"] for r in rows) == pytest.approx(totals["dollars"], abs=1e-5)
    assert totals["dollars"] == pytest.approx(totals["seconds"], abs=0.1) and totals["dollars"] > 0
    tokens = sum(r["completion_tokens"] for r in rows)
    assert tokens > sum(r["tokens"]["completion"] for r in there)  # what was in flight is billed, too
    assert make("a")[0] == whole


def test_ctrl_c_itself(make, tmp_path):
    """The signal, while the loop waits: what was finished by then is on the disk."""
    whole, _ = make("whole")

    class Pressing(FakeEngine):
        async def complete(self, *args):
            if len(self.asked) == 40:
                signal.raise_signal(signal.SIGINT)
            return await super().complete(*args)

    with pytest.raises(KeyboardInterrupt):
        make("a", Pressing(answers, capacity=4, patience=slow))
    there = read_records(tmp_path / "data/a")
    assert 4 <= len(there) < N and make("a")[0] == whole


def test_what_broke_a_batch_off_is_billed_though_no_request_was_charged(make, tmp_path):
    engine = FakeEngine(lambda p: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        make("a", engine)
    [row] = jsonl.read(tmp_path / "logs/ledger.jsonl", LEDGER_KEYS)
    assert row["step"] == "broken off" and row["examples"] == 0


# ---- so many at a time ----


def test_as_finished_never_has_more_than_so_many_and_begins_the_next_when_one_ends():
    running, most, begun = set(), [], []
    gates = {n: None for n in range(9)}

    async def work(n):
        running.add(n)
        begun.append(n)
        most.append(len(running))
        await gates[n].wait()
        running.remove(n)
        return n

    async def main():
        for n in gates:
            gates[n] = asyncio.Event()
        order, got = [2, 0, 4, 1, 3, 6, 5, 8, 7], []
        groups = as_finished(work, range(9), 3)
        gates[order[0]].set()
        async for group in groups:
            got += group
            for _ in range(3):
                await asyncio.sleep(0)
            if len(got) < 9:
                gates[order[len(got)]].set()
        assert got == order

    asyncio.run(main())
    assert max(most) == 3 and begun == list(range(9)) and not running


def test_as_finished_waits_for_those_in_flight_when_nothing_more_may_begin():
    may = [True, True, False, True]  # asked before each example; it is asked again once one has ended

    class Items:
        left = [1, 2, 3]

        def __iter__(self):
            return self

        def __next__(self):
            if not self.left or not (may.pop(0) if may else True):
                raise StopIteration
            return self.left.pop(0)

    async def work(n):
        for _ in range(n):
            await asyncio.sleep(0)
        return n

    async def main():
        return [n async for group in as_finished(work, Items(), 8) for n in group]

    assert asyncio.run(main()) == [1, 2, 3]


def test_as_finished_gives_what_has_ended_when_it_is_cancelled():
    async def main():
        gate, got = asyncio.Event(), []

        async def work(n):
            await (gate if n < 3 else asyncio.Event()).wait()
            return n

        async def consume():
            async for group in as_finished(work, range(4), 4):
                got.extend(group)

        consumer = asyncio.ensure_future(consume())
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        gate.set()
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert got == [0, 1, 2]

    asyncio.run(main())


def test_as_finished_with_nothing_to_do():
    async def main():
        return [n async for group in as_finished(None, [], 8) for n in group]

    assert asyncio.run(main()) == []


# ---- what it costs ----


class Costing:
    """A clock for the loop: each request to the engine takes so many seconds."""

    def __init__(self, monkeypatch, each=1.0):
        self.now, self.each = 0.0, each
        monkeypatch.setattr("cai.generation.records.time.perf_counter", lambda: self.now)

    def engine(self, answers, **more):
        def answer(prompt):
            self.now += self.each(prompt) if callable(self.each) else self.each
            return answers(prompt)

        return FakeEngine(answer, **more)


def test_the_ledgers_rates_are_the_steps_seconds_by_all_examples(make, monkeypatch, tmp_path):
    """Examples finish when most steps have nothing to do, and many need no revision: a step is by all of
    them."""
    clock = Costing(monkeypatch)
    for capacity, patience in ((1, lambda seed: 0), (8, slow), (64, slow)):
        name = f"run{capacity}"
        make(name, clock.engine(answers, capacity=capacity, patience=patience))
        ledger = [r for r in jsonl.read(tmp_path / "logs/ledger.jsonl", LEDGER_KEYS) if r["run"] == name]
        for step in ("answer", "critique", "revision"):
            assert sum(r["examples"] for r in ledger if r["step"] == step) == N, (capacity, step)
        found = rates(ledger, REGISTRY["sandbox"], Weights("local", 16), "cpu")
        revised = sum(n % 5 != 0 for n in range(N))
        assert found["answer"].source == f"measured in run {name}, n {N}"
        assert found["answer"].seconds == pytest.approx(1.0)
        assert found["critique"].seconds == pytest.approx(1.0)  # by critique: two an example
        assert found["revision"].seconds == pytest.approx(revised / N)
        assert sum(r["seconds"] for r in ledger) == pytest.approx(N * 3 + revised)


def test_a_guard_of_its_own_is_billed_beside_the_loop_and_one_of_the_loops_engine_once(make, tmp_path):
    for name, own in (("apart", True), ("shared", False)):
        engine = FakeEngine(answers)
        guard = Guard(FakeEngine(lambda p: f"Fine. {KEEP}") if own else engine)
        make(name, engine, guard=guard)
        rows = [r for r in jsonl.read(tmp_path / "logs/ledger.jsonl", LEDGER_KEYS) if r["run"] == name]
        for step in ("answer", "guard"):
            assert sum(r["examples"] for r in rows if r["step"] == step) == N
        totals = json.loads((tmp_path / "data" / name / "run.json").read_text())["totals"]
        assert totals["seconds"] == pytest.approx(sum(r["seconds"] for r in rows), abs=1e-3)
        assert not engine.usage and not guard.engine.usage


def test_a_run_bills_the_clocks_seconds_as_the_engine_was_used(make, tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    with Run.open("b", {}) as run:
        run.hourly_rate = 3600.0
        run.bill({"answer": Usage(6.0, 10, 20), "judge": Usage(2.0, 5, 0)}, 4.0, {"answer": 3})
        run.bill({"answer": Usage(), "judge": Usage()}, 1.0, {"answer": 1, "judge": 4})
        run.bill({}, 7.0, {})
        rows = jsonl.read(tmp_path / "logs/ledger.jsonl", LEDGER_KEYS)
        assert [(r["step"], r["seconds"], r["dollars"], r["examples"]) for r in rows] == [
            ("answer", 3.0, 3.0, 3),
            ("judge", 1.0, 1.0, 0),
            ("answer", 0.5, 0.5, 1),
            ("judge", 0.5, 0.5, 4),
        ]
        totals = {"seconds": 5.0, "prompt_tokens": 15, "completion_tokens": 20, "dollars": 5.0}
        assert run.manifest["totals"] == totals and run.dollars == 5.0


def limited(dollars, per_example=4.0):
    return lambda run: Budget.of(dollars, run, per_example)


def test_the_budget_is_never_passed_and_what_is_begun_is_finished(make, monkeypatch, tmp_path):
    whole, _ = make("whole")
    for dollars in (8, 11, 20, 50):
        clock, name = Costing(monkeypatch), f"run{dollars}"
        engine = clock.engine(answers, capacity=8, patience=slow)
        with pytest.raises(BudgetReached, match=f"of .{dollars}.00 are spent.*larger --budget"):
            make(name, engine, budget=limited(dollars))
        there = read_records(tmp_path / "data" / name)
        spent = json.loads((tmp_path / "data" / name / "run.json").read_text())["totals"]["dollars"]
        begun = {n for p, *_ in engine.asked for n in re.findall(r"number (\d+)", p)}
        assert (
            spent <= dollars and len(begun) == len(there) >= (dollars - 8) / 4.4
        )  # each costs three or four
        assert make(name, clock.engine(answers, capacity=8), budget=limited(1000))[0] == whole


def test_a_budget_that_the_forecast_overestimates_is_used_up_all_the_same(make, monkeypatch):
    """Those in flight turn out cheaper: it goes on."""
    clock = Costing(monkeypatch)
    found, _ = make("a", clock.engine(answers, capacity=8), budget=limited(150, per_example=100.0))
    assert len(found) == N


def test_nothing_is_begun_where_not_even_one_example_fits(make, monkeypatch):
    engine = Costing(monkeypatch).engine(answers)
    with pytest.raises(BudgetReached, match="1 examples would cost about .4.00, and .0.00 of .3.00"):
        make("a", engine, budget=limited(3.0))
    assert not engine.asked


def test_a_finished_run_needs_no_budget(make):
    whole, _ = make("a")
    assert make("a", budget=limited(1e-9, per_example=4.0))[0] == whole


def test_what_was_spent_before_the_loop_is_no_examples_cost(make, monkeypatch):
    """Loading and instructions come first; the measured cost of an example is the loop's alone."""
    clock = Costing(monkeypatch)

    def after_much(run):
        budget = Budget.of(172, run, 4.0)
        run.bill({"instructions": Usage(1.0)}, 80.0, {})
        return budget

    assert len(make("a", clock.engine(answers, capacity=1), budget=after_much)[0]) == N


def test_outside_of_the_loop_nothing_is_charged_to_its_steps(make):
    make("a")
    assert STEP.get() == "other"
