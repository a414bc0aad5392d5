"""Nothing finished is lost: runs that are killed, run out of disk, or find what is not theirs."""

import contextlib
import dataclasses
import json
import os
import random
import re
import resource

import pytest
from cai.core import errors, files, jsonl
from cai.core.errors import BudgetReached, UserError
from cai.core.files import ROOT
from cai.core.jsonl import read
from cai.core.run import Run, read_manifest
from cai.core.schema import PAIR_KEYS, RECORD_KEYS, content_id
from cai.costs.budget import Budget
from cai.costs.rates import rates
from cai.costs.units import Weights
from cai.evaluation.result_store import ResultStore
from cai.generation import guard
from cai.generation.example import examples_of
from cai.generation.instructions import make_instructions
from cai.generation.loop import Loop
from cai.generation.pairs import make_pairs
from cai.generation.records import make_records, read_instructions, read_records
from cai.generation.self_instruct import Made, Wave
from cai.generation.yield_stats import report_yield
from cai.models.loader import load
from cai.models.local_engine import LocalEngine
from cai.models.registry import REGISTRY
from cai.models.session import Session, prompter_of
from cai.prompts.constitution import load as load_constitution
from cai.prompts.markers import CHANGE, KEEP
from cai.training import callbacks
from cai.training.dpo import train_adapter
from cai.training.pair_files import read_pairs
from cai.training.settings import Settings
from fakes import FakeEngine
from pairs_of_facts import pairs_of_facts

CONSTITUTION, SANDBOX = load_constitution(ROOT / "constitution.yaml"), REGISTRY["sandbox"]
ROWS = ("instructions.jsonl", "records.jsonl", "pairs.jsonl")
EXAMPLES, IN_FLIGHT = 23, 5
UNSAFE_CHOSEN = "unsafe_chosen"
WORDS = "amber basalt copper driftwood ebony flint glass hemp ivory jade".split()


class Killed(BaseException):
    """In place of SIGKILL, where a test is to choose the very byte."""


# ---- a milestone without a model ----


def answers(prompt: str) -> str:
    """Four of five answers are revised, in words that differ from example to example."""
    number = int(re.findall(r"number (\d+)", prompt)[-1])
    old, new = (" and ".join((WORDS[(number + n) % 10], WORDS[(3 * number + n) % 10])) for n in (0, 5))
    verdict = KEEP if number % 5 == 0 else CHANGE
    return {
        "Response:": f"Thing number {number} consists of {old}.",
        "Critique:": f"Thing number {number} consists of {new} and not of {old}. {verdict}",
        "Revision:": f"Thing number {number} was always made of {new}.",
    }[prompt.rsplit("\n", 1)[-1]]


class Guard(guard.Guard):
    """Finds the texts about every seventh thing unsafe."""

    def __init__(self):
        self.engine = FakeEngine(spec=dataclasses.replace(SANDBOX, name="guard"))

    async def classify(self, instruction, response=None):
        unsafe = re.search(r"number \d*7\b", response or "")
        return guard.SafetyVerdict(not unsafe, (), 0.5, "?")


@pytest.fixture
def generate(tmp_path, monkeypatch):
    """generate(name, ...): instructions from a file, records, guard, pairs, as the milestones do it."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    monkeypatch.setattr("cai.generation.yield_stats.plot", lambda rows, path: None)
    source = tmp_path / "source.jsonl"
    texts = [f"What is the thing number {n} in the old museum made of?" for n in range(EXAMPLES)]
    source.write_text("".join(json.dumps({"instruction": t}) + "\n" for t in texts))

    def make(name, *, shard=(1, 1), guard=None, budget=None, in_flight=IN_FLIGHT, **settings):
        engine = FakeEngine(answers, capacity=in_flight, patience=lambda seed: seed % 9)
        with Run.open(name, {"seed": 0, "held_out": 0.2, **settings}) as run:
            run.hourly_rate = 3600.0
            session = Session(run, CONSTITUTION, engine, prompter_of(engine), None, 0)
            rows = make_instructions(session, EXAMPLES, str(source))
            loop = Loop(engine, session.prompter, CONSTITUTION, 0, 2, judged=False, guard=guard)
            Budget.of(budget, run, 1e-9)
            some = make_records(run, loop, examples_of(rows), shard=shard)
            report_yield(run, CONSTITUTION, some)
            done = read_records(run.data)
            if len(done) == len(rows):
                make_pairs(run, done, anchors=0.6, seed=0, held_out=0.2)
        return run.data

    return make


def test_instructions_say_how_many_lack_and_stop_at_the_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    source = tmp_path / "source.txt"
    source.write_text("What is red?\nWhat is blue?\n")
    engine = FakeEngine(answers)
    with Run.open("a", {"seed": 0}) as run:
        session = Session(run, CONSTITUTION, engine, prompter_of(engine), None, 0)
        run.budget = Budget(1.0, lambda: 0.0, rates={"instructions": 0.1})
        with pytest.raises(BudgetReached, match="20 instructions would cost about .2.00"):
            make_instructions(session, 20)
        assert not engine.asked
        assert len(make_instructions(session, 5, str(source))) == 2
    assert "warning: 2 of 5 instructions were found" in capsys.readouterr().out


def test_what_a_source_does_not_give_is_said_in_a_line_each(tmp_path, monkeypatch, capsys):
    """Of which rows a sample is, which columns were not read, and that a run has fewer than it asked for."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    source = tmp_path / "source.csv"
    source.write_text("question,input,label,note\x1b[2J\n" + "".join(f"Is {n} odd?,,x,y\n" for n in range(9)))
    wide = tmp_path / "wide.jsonl"
    row = {"prompt": "What is red?"} | {f"column {n} {'x' * 200}": n for n in range(99)}
    wide.write_text("".join(json.dumps(row) + "\n" for row in (row, {"prompt": "What is blue?"})))

    def made(name, want, source):
        with Run.open(name, {"seed": 0}) as run:
            engine = FakeEngine(answers)
            session = Session(run, CONSTITUTION, engine, prompter_of(engine), None, 0)
            rows = [r["instruction"] for r in make_instructions(session, want, str(source))]
        return rows, capsys.readouterr().out, read_manifest(name)["instructions"]

    rows, said, noted = made("some", 4, source)
    assert len(rows) == 4 and rows != [f"Is {n} odd?" for n in range(4)]
    assert f"{source}: a sample of 4 of 9 usable prompts, by the seed" in said and "warning" not in said
    assert said.count("not read") == 1 and "not read: columns label, note\\x1b[2J\n" in said
    assert noted["unread"] == ["label", "note\x1b[2J"]
    again, said, _ = made("all", 100, source)
    assert again[:4] == rows and len(again) == 9 and "a sample" not in said
    assert "warning: 9 of 100 instructions were found" in said
    _, said, noted = made("wide", 2, wide)
    [line] = [line for line in said.splitlines() if "not read" in line]
    assert line.endswith("... and 79 more") and len(line) < 2000 and len(noted["unread"]) == 99


def test_instructions_stop_between_waves_where_the_budget_ends_and_are_kept(tmp_path, monkeypatch):
    """A wave costs a dollar, by the clock of a step that is under way."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    waves = []

    def self_instruct(*args, want, known, on_wave, **more):
        rows = list(known)
        while len(rows) < want:
            text = f"What is the thing number {len(rows)} made of?"
            row = {"id": content_id(text), "instruction": text, "task": "math", "source": "self_instruct"}
            waves.append(row)
            rows.append(row)
            on_wave(Wave(len(rows), [row], [], []))
        return Made(rows)

    monkeypatch.setattr("cai.generation.self_instruct.self_instruct", self_instruct)
    monkeypatch.setattr(Run, "under_way", property(lambda run: float(len(waves))))
    engine = FakeEngine(answers)
    with Run.open("a", {"seed": 0}) as run:
        session = Session(run, CONSTITUTION, engine, prompter_of(engine), None, 0)
        Budget.of(3.5, run)
        with pytest.raises(BudgetReached, match=r"one more piece of instructions would cost about .1.10"):
            make_instructions(session, 9)
        assert len(waves) == 3 == len(read_instructions(run.data))
        Budget.of(100.0, run)
        assert len(make_instructions(session, 9)) == 9 == len(waves)


def contents(data):
    """The files as they must end. Records are as they were finished: their order is no matter."""
    found = {name: (data / name).read_bytes() for name in ROWS}
    return found | {"records.jsonl": b"".join(sorted(found["records.jsonl"].splitlines(keepends=True)))}


@contextlib.contextmanager
def killed_after(size: int):
    """Every file is appended to as ever, until so many bytes have been: there the process ends."""
    whole, left = jsonl.append, size

    def append(path, rows):
        nonlocal left
        before = path.stat().st_size if path.exists() else 0
        whole(path, rows)
        left -= path.stat().st_size - before
        if left < 0:
            os.truncate(path, max(before, path.stat().st_size + left))
            left = 0
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "append", append)
        yield


@contextlib.contextmanager
def room(size: int):
    """No file can grow beyond so many bytes: a write that would fails as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_killed_at_any_byte_it_ends_with_the_rows_of_an_undisturbed_run(generate):
    undisturbed = contents(generate("whole", guard=Guard()))
    rows = [json.loads(line) for line in undisturbed["records.jsonl"].splitlines()]
    assert len(rows) == EXAMPLES and {UNSAFE_CHOSEN} < {x for r in rows for x in r["rejected_because"]}
    assert len(undisturbed["pairs.jsonl"].splitlines()) > EXAMPLES / 2
    rng, size = random.Random(0), sum(map(len, undisturbed.values()))
    for number in range(12):
        name, kills = f"killed{number}", 0
        while True:
            try:
                with killed_after(rng.randrange(size // 2)):
                    data = generate(name, guard=Guard())
                break
            except Killed:
                kills += 1
                data = files.directories(name)[0]
                for row in read_records(data):  # a guard's verdict comes to the disk with the record
                    unsafe = not (row["guard"]["revised_answer"] or row["guard"]["initial_answer"])["safe"]
                    assert unsafe == (UNSAFE_CHOSEN in row["rejected_because"])
                    assert row["kept"] != bool(row["rejected_because"])
        assert kills and contents(data) == undisturbed


def test_the_number_in_flight_is_no_matter(generate):
    one, many = generate("a", in_flight=1), generate("b", in_flight=64)
    assert contents(one) == contents(many) and read_records(one) == read_records(many)
    assert (one / "records.jsonl").read_bytes() != (many / "records.jsonl").read_bytes()


def test_killed_between_the_guards_verdicts_and_the_disk(generate):
    whole = contents(generate("whole", guard=Guard()))

    class Dying(Guard):
        async def inspect(self, record):
            await super().inspect(record)
            if len(read_records(files.directories("killed")[0])) >= IN_FLIGHT:
                raise Killed

    with pytest.raises(Killed):
        generate("killed", guard=Dying())
    found = read_records(files.directories("killed")[0])
    assert IN_FLIGHT <= len(found) < 2 * IN_FLIGHT and all(r["guard"]["initial_answer"] for r in found)
    assert contents(generate("killed", guard=Guard())) == whole


def test_a_full_disk_in_the_middle_of_a_file(generate):
    whole = contents(generate("whole"))
    for size in (len(whole["instructions.jsonl"]) // 2, len(whole["records.jsonl"]) // 2):
        with pytest.raises(OSError) as error, room(size):
            generate(f"full{size}")
        assert "rerun" in errors.explain_os_error(error.value)
        for path in files.directories(f"full{size}")[0].glob("*.jsonl"):
            lines = path.read_bytes().splitlines(keepends=True)
            assert all(line.endswith(b"\n") for line in lines)
            assert set(lines) <= set(whole[path.name].splitlines(keepends=True))
        assert contents(generate(f"full{size}")) == whole


def test_a_full_disk_in_the_middle_of_an_evaluation(tmp_path):
    wanted = [{"id": f"answer/{n}"} for n in range(40)]
    asked = []

    def work(some):
        asked.extend(w["id"] for w in some)
        return [{"answer": "x" * 100} for _ in some]

    path = tmp_path / "evaluation/preference.jsonl"
    with pytest.raises(OSError) as error, room(3000):
        ResultStore(path, "setup", chunk=8).fill(wanted, work)
    assert str(path) in errors.explain_os_error(error.value)
    assert [r["id"] for r in read(path, {"id": str})] == [f"answer/{n}" for n in range(16)]
    found = ResultStore(path, "setup", chunk=8).fill(wanted, work)
    assert [r["id"] for r in found] == [r["id"] for r in read(path, {"id": str})] == [w["id"] for w in wanted]
    assert len(asked) == 40 + 8  # the chunk that found no room, twice


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("line", ["no JSON", '{"id": "0"}', "[" * 100_000])
def test_a_foreign_line_is_named_and_nothing_is_lost(generate, name, line):
    data = generate("a")
    whole, path = contents(data), data / name
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], line.encode() + b"\n", *lines[3:]]))
    broken = contents(data)
    with pytest.raises(UserError, match=rf"{name}, line 4: .*remove the line"):
        generate("a")
    assert contents(data) == broken
    path.write_bytes(good)
    assert contents(generate("a")) == whole


@pytest.mark.parametrize("name", ROWS)
def test_a_truncated_last_line_is_made_again(generate, name):
    data = generate("a")
    whole, path = contents(data), data / name
    path.write_bytes(path.read_bytes()[:-20])
    if name != "pairs.jsonl":  # pairs come after the records, and these after the instructions
        (data / "pairs.jsonl").unlink()
    if name == "instructions.jsonl":
        (data / "records.jsonl").unlink()
    assert contents(generate("a")) == whole


def test_evaluation_rows_a_foreign_line_and_a_truncated_one(tmp_path):
    path = tmp_path / "evaluation/preference.jsonl"
    wanted = [{"id": f"answer/{n}"} for n in range(6)]
    fill = lambda: ResultStore(path, "s").fill(wanted, lambda some: [{"answer": w["id"]} for w in some])  # noqa: E731
    rows = fill()
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert fill() == rows and path.read_bytes() == whole
    path.write_bytes(whole.replace(b"\n", b"\nforeign\n", 1))
    with pytest.raises(UserError, match=r"preference.jsonl, line 2: .*remove the line"):
        fill()


# ---- what is not the run's own ----


def change(path, number, **facts):
    """Puts facts into a row, and gives back the row as it was."""
    lines = path.read_text().splitlines()
    row = json.loads(lines[number])
    lines[number] = json.dumps(row | facts, ensure_ascii=False)
    path.write_text("".join(line + "\n" for line in lines))
    return row


@pytest.mark.parametrize(("name", "facts", "said"), [
    ("instructions.jsonl", {"instruction": "Another?"}, "instructions.jsonl, line 3: the id is not that"),
    ("records.jsonl", {"id": content_id("x")}, "records.jsonl, line 3: its instruction is not in"),
    ("records.jsonl", {"seed": 5}, "records.jsonl, line 3: its seed is 5, that of the first record 0"),
    ("records.jsonl", {"model": "other"}, "its model is other, that of the first record sandbox"),
    ("records.jsonl", {"guard": {"model": "g"}}, "its guard is g, that of the first record None"),
    ("pairs.jsonl", {"chosen": "Mine."}, r"pairs.jsonl, line 3: this run would write another row .*--fresh"),
])  # fmt: skip
def test_a_row_that_is_not_the_runs_is_refused(generate, name, facts, said):
    data = generate("a")
    change(data / name, 2, **facts)
    with pytest.raises(UserError, match=said):
        generate("a")


@pytest.mark.parametrize(("facts", "said"), [
    ({"critiques": [5]}, "'critiques' has an item 1 that is of type int"),
    ({"critiques": [{"principle": "p", "critique": "c"}]},
     "'critiques' has an item 1 that does not fit: the key 'principle_id' is missing"),
    ({"rejected_because": [None]}, "'rejected_because' has an item 1 that is of type NoneType"),
    ({"preference_pair": {"prompt": "p"}}, "'preference_pair' does not fit: the key 'chosen' is missing"),
    ({"tokens": {"prompt": "many"}}, "'tokens' does not fit: 'prompt' is of type str"),
    ({"judgement": {}}, "'judgement' does not fit: the key 'passed' is missing"),
    ({"guard": "g"}, "'guard' is of type str"),
    ({"seed": True}, "'seed' is of type bool"),
    ({"kept": None}, "'kept' is of type NoneType"),
])  # fmt: skip
def test_a_value_that_code_could_not_read_is_named_with_its_line(generate, facts, said):
    data = generate("a")
    change(data / "records.jsonl", 0, **facts)
    with pytest.raises(UserError, match=rf"records.jsonl, line 1: {re.escape(said)}.*remove the line"):
        read_records(data)


def test_a_record_of_another_instruction_than_its_id_says_is_refused(generate):
    data = generate("a")
    change(data / "records.jsonl", 2, instruction="Another?")
    with pytest.raises(UserError, match=r"records.jsonl, line 3: the id is not that of the instruction"):
        read_records(data)


def test_the_pairs_that_a_run_writes_are_recorded_with_their_hash(generate):
    data = generate("a")
    rows, found = read(data / "pairs.jsonl", PAIR_KEYS), read_manifest("a")["pairs"]
    assert found["count"] == len(rows) and found["held_out"] == sum(r["held_out"] for r in rows) > 0
    assert found["sha256"] == files.sha256_file(data / "pairs.jsonl")
    change(data / "pairs.jsonl", 0, chosen="Mine.")
    with pytest.raises(UserError, match=f"wrote .{len(rows)} pairs, now {len(rows)}.: restore it"):
        read_pairs(data)


@pytest.mark.parametrize("name", ["instructions.jsonl", "records.jsonl"])
def test_a_row_that_is_there_twice_is_refused(generate, name):
    data = generate("a")
    with open(data / name, "a") as f:
        f.write((data / name).read_text().splitlines()[1] + "\n")
    with pytest.raises(UserError, match=rf"{name}, line {EXAMPLES + 1}: .*twice"):
        generate("a")


def test_a_source_that_has_changed_is_refused(generate, tmp_path):
    generate("a")
    lines = (tmp_path / "source.jsonl").read_text().splitlines()
    (tmp_path / "source.jsonl").write_text(
        "\n".join([*lines[:4], '{"instruction": "A new one?"}', *lines[5:]])
    )
    with pytest.raises(UserError, match=r"instructions.jsonl, line 5: .*has changed"):
        generate("a")


def test_settings_that_differ_are_named(generate):
    generate("a", shards=2, shard=(1, 2))
    with pytest.raises(UserError, match=r"shards was 2, now 8"):
        generate("a", shards=8, shard=(3, 8))
    with pytest.raises(UserError, match=r"seed was 0, now 1"):
        generate("a", shards=2, shard=(2, 2), seed=1)


def test_a_shard_killed_and_resumed_merges_to_the_whole(generate):
    whole = generate("whole", guard=Guard())
    with pytest.raises(Killed), killed_after(20_000):
        generate("parts", shards=2, shard=(1, 2), guard=Guard())
    assert 0 < len(read_records(files.directories("parts")[0])) < EXAMPLES / 2
    for number, complete in ((2, False), (1, True), (2, True)):
        data = generate("parts", shards=2, shard=(number, 2), guard=Guard())
        assert (data / "pairs.jsonl").exists() == complete
    assert (data / "pairs.jsonl").read_bytes() == (whole / "pairs.jsonl").read_bytes()
    assert read_records(data) == read_records(whole)


def test_shards_of_another_division_or_name_are_refused(generate):
    data = generate("a", shards=2, shard=(1, 2))
    first = data / "records-001-of-002.jsonl"
    first.rename(data / "records-002-of-002.jsonl")
    with pytest.raises(UserError, match=r"records-002-of-002.jsonl, line 1: the record is of another shard"):
        generate("a", shards=2, shard=(1, 2))
    (data / "records-002-of-002.jsonl").rename(first)
    (data / "records-003-of-008.jsonl").write_text("")
    with pytest.raises(UserError, match=r"two divisions into shards .*move those"):
        generate("a", shards=2, shard=(2, 2))
    (data / "records-003-of-008.jsonl").rename(data / "records.backup.jsonl")  # nothing of the run's
    generate("a", shards=2, shard=(2, 2))
    assert len(read_records(data)) == EXAMPLES == len(read_instructions(data))


# ---- cost ----


def test_dollars_of_a_run_that_stopped_and_went_on_add_up(generate, tmp_path):
    with pytest.raises(BudgetReached):
        generate("a", budget=1e-8)
    with pytest.raises(Killed), killed_after(20_000):
        generate("a")
    data = generate("a")
    totals = json.loads((data / "run.json").read_text())["totals"]
    ledger = read(tmp_path / "logs/ledger.jsonl", {"step": str})
    assert len(read(data / "records.jsonl", RECORD_KEYS)) == EXAMPLES
    for key in totals:
        assert totals[key] == pytest.approx(sum(r[key] for r in ledger), abs=1e-4)
    # A process that is killed while it writes does not come to count what it has just finished.
    assert EXAMPLES - IN_FLIGHT <= sum(r["examples"] for r in ledger if r["step"] == "answer") <= EXAMPLES


def test_what_an_error_cut_short_has_cost_money_and_gives_no_rate(generate, tmp_path):
    with pytest.raises(KeyboardInterrupt), Run.open("b", {}) as opened:
        opened.hourly_rate = 3600.0
        with opened.step("training") as step:
            step.examples = 3
            raise KeyboardInterrupt
    [row] = read(tmp_path / "logs/ledger.jsonl", {"step": str})
    assert row["interrupted"] and opened.manifest["totals"]["dollars"] == row["dollars"]
    row |= {"model": "sandbox", "bits": 16, "device": "cpu"}
    assert "assumed" in rates([row], SANDBOX, Weights("local", 16), "cpu")["training"].source
    del row["interrupted"]
    assert "measured" in rates([row], SANDBOX, Weights("local", 16), "cpu")["training"].source


# ---- training ----


def test_training_that_was_cut_short(tmp_path, monkeypatch):
    """Killed in its third step; a foreign line in its log; resumed; another base's adapter in its place."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    pairs = pairs_of_facts(8, held_out=4)

    def train():
        with Run.open("a", {"bits": 16}) as run:
            model = load(SANDBOX)
            engine = LocalEngine(model)
            session = Session(run, CONSTITUTION, engine, prompter_of(engine), model)
            return train_adapter(session, pairs, Settings.of(SANDBOX, 4))

    def step(self, number, logs):
        if number == 3:
            raise Killed
        log_step(self, number, logs)

    log_step = callbacks.Log.step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(callbacks.Log, "step", step)
        train()
    log = tmp_path / "checkpoints/a/training.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b"\n", b"\nforeign\n", 1))
    with pytest.raises(UserError, match=r"training.jsonl, line 2: .*remove the line"):
        train()
    log.write_bytes(whole + b'{"kind": "train", "st')
    result = train()
    assert (result.steps, result.taken) == (4, 2)
    assert [r["step"] for r in read(log, callbacks.LOG_KEYS) if r["kind"] == "train"] == [1, 2, 3, 4]
    rows = [r for r in read(tmp_path / "logs/ledger.jsonl", {"step": str}) if r["step"] == "training"]
    assert [(r["examples"], r.get("interrupted")) for r in rows] == [(None, True), (None, True), (2, None)]
    base = tmp_path / "checkpoints/a/base.json"
    base.write_text(base.read_text().replace('"sandbox"', '"Qwen/Qwen2.5-32B"'))
    with pytest.raises(UserError, match=r"belongs to Qwen/Qwen2.5-32B"):
        train()
