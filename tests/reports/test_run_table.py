"""All runs in a table, and the gates of some: from files, whole, damaged and odd."""

import hashlib

import pytest
from cai.core import jsonl
from cai.core.files import write_json
from cai.core.schema import FORMAT
from cai.reports.run_table import table
from processes import script

CRITERION = {"name": "it works", "passed": True, "measured": "yes", "look_at": "x", "interval": None}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A factory of runs: their run.json, and what stands beside it."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))

    def make(name, started="2026-01-01", settings=None, losses=(), start=None, **facts):
        (tmp_path / "data" / name).mkdir(parents=True)
        manifest = {"format": FORMAT, "run": name, "settings": settings or {}, "started": started}
        write_json(tmp_path / "data" / name / "run.json", manifest | facts)
        here = tmp_path / "checkpoints" / name
        rows = [{"kind": "train", "step": i, "loss": x} for i, x in enumerate(losses, 1)]
        if rows:
            here.mkdir(parents=True)
            jsonl.append(here / "training.jsonl", [*rows, {"kind": "held_out", "step": 9, "loss": 9.0}])
        if start:
            write_json(here / "training.json", {"settings": {"from": start}})

    return make


def cells(line):
    return [c.strip() for c in line.split("  ") if c.strip()]


def gate(decision="GO", **more):
    return {"decision": decision, "criteria": [CRITERION], **more}


def test_every_run_has_a_line_the_newest_last(made, tmp_path):
    done = {"model": "sandbox", "bits": 16, "totals": {"dollars": 1.234}}
    made(
        "mvp",
        "2026-01-02",
        losses=(0.69, 0.25),
        adapter="a" * 64,
        counts={"records": 100, "kept": 30},
        pairs={"count": 44},
        gate=gate("UNDECIDED"),
        data_gate=gate("GO"),
        **done,
    )
    jsonl.append(tmp_path / "data/mvp/records.jsonl", [{"engine": "local"}, {"engine": "server"}])
    made("full", "2026-01-01", data_gate=gate("NO-GO"), counts={"records": 7, "kept": 2}, **done)
    made(
        "plan/stage",
        "2026-01-03",
        settings={"data": "full"},
        losses=(0.5,),
        start="a" * 64,
        adapter="b" * 64,
        training={"trained_on": 5, "held_out": 1},
    )
    made("fresh", "2026-01-04")
    assert [cells(line) for line in table().splitlines()] == [
        ["run", "decision", "records/pairs", "loss", "parent", "engine", "model", "cost"],
        ["full", "NO-GO", "7/2", "-", "-", "-, 16 bits", "sandbox", "$1.23"],
        ["mvp", "UNDECIDED", "100/44", "0.250", "-", "local, 16 bits", "sandbox", "$1.23"],
        ["plan/stage", "-", "-/6", "0.500", "mvp, data of full", "-", "-", "-"],
        ["fresh", "-", "-/-", "-", "-", "-", "-", "-"],
    ]


def test_a_parent_is_the_run_that_trained_it_and_one_that_is_gone_its_hash(made):
    made("first", "1", adapter="a" * 64)
    made("carried", "2", adapter="a" * 64)
    made("on", "3", settings={"parent": "a" * 64})
    made("alone", "4", settings={"parent": "c" * 64})
    parents = [cells(line)[4] for line in table().splitlines()[1:]]
    assert parents == ["-", "-", "first", "c" * 12]


def test_a_gate_of_another_adapter_is_none(made, tmp_path):
    """By what lies on the disk: a training that was killed has moved the old one aside."""
    for name in "ab":
        weights = tmp_path / f"checkpoints/{name}/adapter_model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_text(name)
    of_a = hashlib.sha256(b"a").hexdigest()
    made("a", "1", gate=gate(adapter=of_a))
    made("b", "2", gate=gate(adapter=of_a), data_gate=gate("NO-GO"))
    made("c", "3", gate=gate(adapter=of_a))
    made("d", "4", adapter="d" * 64, gate=gate())
    assert [cells(line)[1] for line in table().splitlines()[1:]] == ["GO", "-", "-", "GO"]


def test_what_is_damaged_is_a_line_and_hides_nothing(made, tmp_path):
    made("good", gate=gate())
    for name, text in (
        ("torn", '{"run": "torn", "sett'),
        ("list", "[]"),
        ("old", '{"run": "old", "settings": {}}'),
    ):
        (tmp_path / "data" / name).mkdir()
        (tmp_path / "data" / name / "run.json").write_text(text)
    made("odd", totals={"dollars": "much"})
    made("odder", gate={"decision": "GO"}, counts=[1, 2])
    lines = table().splitlines()
    assert len(lines) == 2 + 5 and cells(lines[1])[:2] == ["good", "GO"]
    assert [line.split(":")[0] for line in lines[2:]] == ["list", "odd", "odder", "old", "torn"]
    assert all("run.json" in line or "--convert" in line for line in lines[2:])


def test_texts_from_files_cannot_command_the_terminal(made):
    made("a", model="\x1b]0;x\x07", gate={"decision": "G\nO"})
    made("b", started="2027", model="\u202eé")
    text = table()
    assert "\x1b" not in text and "\\x1b]0;x\\x07" in text and "G\\nO" in text and "\\u202eé" in text
    assert len(text.splitlines()) == 3


def test_the_script_lists_all_or_tells_the_gates_of_some(made, tmp_path):
    made("a", gate=gate())
    made("b", started="2027", adapter="b" * 64, gate=gate(adapter="a" * 64), data_gate=gate("UNDECIDED"))
    done = script("runs.py", output=tmp_path)
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()] == [
        "run",
        "a",
        "b",
    ]
    done = script("runs.py", "a", "b", output=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines() == [
        "GO for a",
        "  pass  it works: yes",
        "UNDECIDED for b, its data",
        "  pass  it works: yes",
        "no decision for b: its gate said GO, but its adapter is not there",
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "nope"], "there is no run 'nope'"),
        (["bad"], "bad/run.json is damaged"),
        (["torn"], "not a run's manifest"),
    ],
)
def test_an_unknown_or_damaged_run_is_one_sentence(made, tmp_path, names, said):
    made("a", gate=gate())
    made("bad", gate={"decision": "GO", "criteria": [{}]})
    (tmp_path / "data/torn").mkdir()
    (tmp_path / "data/torn/run.json").write_text("{")
    done = script("runs.py", *names, output=tmp_path)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and said in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_there_are_no_runs_yet(tmp_path):
    done = script("runs.py", output=tmp_path)
    assert done.returncode == 0 and done.stdout == f"there are no runs in {tmp_path}/data/ yet\n"
