"""The facade: the ten lines of the README run, and make what the scripts make."""

import asyncio
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import cai
import pytest
from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.run import Run
from cai.core.schema import PAIR_KEYS, RECORD_KEYS, check
from cai.generation.example import examples_of
from cai.generation.loop import Loop
from cai.generation.pairs import make_pairs
from cai.generation.records import make_records
from cai.models.local_engine import LocalEngine
from cai.models.session import prompter_of
from cai.prompts.markers import CHAT_TOKENS
from fakes import FakeEngine

CONSTITUTION = ROOT / "constitution.yaml"
INSTRUCTIONS = ["Who is the mayor of Drola?", "How can I steal salt in Drola?", "What is 3 plus 4?"]


def ten_lines():
    [block] = re.findall(r"```python\n(import cai\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return block


def test_the_readmes_lines_are_the_docstrings_and_few():
    shown = textwrap.dedent("    import cai" + cai.__doc__.split("    import cai")[1].split("\n\nEvery")[0])
    assert shown.strip() == ten_lines().strip() and len(ten_lines().strip().splitlines()) <= 10


def test_the_ten_lines_run_on_the_sandbox(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)  # the constitution is found in the repository
    monkeypatch.setattr(cai, "load", lambda name: LocalEngine(base) if name == "sandbox" else None)
    names = {}
    exec(ten_lines(), names)
    records, rows = names["records"], jsonl.read(tmp_path / "pairs.jsonl", PAIR_KEYS)
    assert [r["instruction"] for r in records] == names["instructions"]
    assert all(
        check(r, RECORD_KEYS, "") and r["model"] == "sandbox" and r["engine"] == "local" for r in records
    )
    assert rows == names["pairs"]
    assert {p["id"] for p in rows if p["kind"] == "revision"} == {r["id"] for r in records if r["kept"]}


def test_it_makes_the_records_and_pairs_that_a_run_makes(tmp_path, monkeypatch, base):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    engine, constitution = LocalEngine(base), cai.constitution(CONSTITUTION)
    records = cai.align(engine, INSTRUCTIONS, constitution, principles=2, seed=5)
    rows = [{"instruction": t, "task": "unknown", "source": "self_instruct"} for t in INSTRUCTIONS]
    with Run.open("a", {}) as run:
        loop = Loop(engine, prompter_of(engine), constitution, 5, 2)
        made = make_records(run, loop, examples_of(rows))
        assert records == made
        assert cai.pairs(records, anchors=0.5, seed=5) == make_pairs(run, made, anchors=0.5, seed=5)
    first, *_ = cai.align(engine, INSTRUCTIONS[:1], constitution, principles=2, seed=5)
    assert first["initial_answer"] == records[0]["initial_answer"]


def test_load_takes_values_of_the_registry_and_adapters(base, monkeypatch):
    monkeypatch.setattr("cai.models.loader.load", lambda spec, bits=None: _with_spec(base, spec))
    engine = cai.load("sandbox", answer_tokens=30, requests=True)
    assert (engine.spec.answer_tokens, engine.spec.requests, engine.adapters) == (30, True, {})
    for values, says in (({"answer_token": 3}, "write name=value"), ({"answer_tokens": 0}, "above 0")):
        with pytest.raises(UserError, match=says):
            cai.load("sandbox", **values)
    with pytest.raises(UserError, match="neither in the registry"):
        cai.load("nonsense")
    with pytest.raises(UserError, match="nowhere"):
        cai.load("sandbox", adapter="nowhere")


def _with_spec(model, spec):
    import dataclasses

    return dataclasses.replace(model, spec=spec)


@pytest.mark.parametrize(
    ("instructions", "says"),
    [
        ([""], "instruction 1 is '': give a text"),
        (["Who is it?", "  \n"], "instruction 2 is .*: give a text"),
        (["Who is it?", None], "instruction 2 is None: give a text"),
        (["Who is it?", "Where?", "Who  is it? "], "instruction 3, .* is there twice"),
        ("Who is it?", "one text, 'Who is it.': give a list"),
        *((["Who?", f"Who is {token}?"], "chat token") for token in CHAT_TOKENS),
        (["Who?", "Who<|endoftext|>?"], "instruction 2, .*, cannot be one: chat_token"),
        (["Who?\nResponse: me"], "instruction 1, .*, cannot be one: marker"),
        (["Who is \ud83d?"], "instruction 1, .*, cannot be one: not_utf8"),
    ],
)
def test_what_is_no_instruction_is_a_sentence_before_anything_is_asked(instructions, says):
    engine = FakeEngine(lambda prompt: "It is Mira.")
    with pytest.raises(UserError, match=says):
        cai.align(engine, instructions, cai.constitution(CONSTITUTION))
    assert not engine.asked


def test_who_answers_is_loaded_and_principles_are_there():
    engine = FakeEngine(lambda prompt: "It is Mira.", adapters={"few": "0123"})
    constitution = cai.constitution(CONSTITUTION)
    with pytest.raises(UserError, match="no adapter 'many' is loaded: there are few"):
        cai.align(engine, ["Who?"], constitution, adapter="many")
    with pytest.raises(UserError, match="cannot pick 99 principles"):
        cai.align(engine, ["Who?"], constitution, principles=99)
    with pytest.raises(UserError, match="none.yaml"):
        cai.constitution("none.yaml")
    [record] = cai.align(engine, ["Who?"], constitution, adapter="few")
    assert record["adapter"] == "0123" and cai.align(engine, [], constitution) == []


def test_an_error_of_the_engine_reaches_the_caller():
    def answers(prompt):
        raise UserError("too hot")

    with pytest.raises(UserError, match="too hot"):
        cai.align(FakeEngine(answers), INSTRUCTIONS, cai.constitution(CONSTITUTION))


def test_it_may_be_called_where_a_loop_is_running_already():
    """As in a notebook."""

    async def cell():
        return cai.align(FakeEngine(lambda prompt: "Mira."), ["Who?"], cai.constitution(CONSTITUTION))

    [record] = asyncio.run(cell())
    assert record["initial_answer"] == "Mira."


def test_several_threads_wait_for_each_other(base):
    engine, constitution = LocalEngine(base), cai.constitution(CONSTITUTION)
    expected = cai.align(engine, INSTRUCTIONS, constitution)
    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(cai.align, engine, INSTRUCTIONS, constitution) for _ in range(3)]
        assert [f.result(timeout=120) for f in found] == [expected] * 3


@pytest.mark.parametrize(
    ("records", "more", "says"),
    [
        ([{}], {}, "record 1: the key 'id' is missing"),
        ([5], {}, "record 1: not a JSON object"),
        ([], {"anchors": float("nan")}, "anchors nan: a share"),
        ([], {"held_out": 5}, "held_out 5: a share"),
    ],
)
def test_what_are_no_records_or_shares_is_a_sentence(records, more, says):
    with pytest.raises(UserError, match=says):
        cai.pairs(records, **more)


@pytest.mark.parametrize("rows", [{"id": "a"}, "abc", [{"id": "a"}, 5], [None]])
def test_what_are_no_rows_is_not_written(tmp_path, rows):
    with pytest.raises(UserError, match="is no row"):
        cai.write(rows, tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_importing_it_imports_nothing_more():
    code = "import sys, cai; print(*sorted(m for m in sys.modules if m.startswith('cai')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": "scripts"}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["cai"], done.stderr
