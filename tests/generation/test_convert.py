"""Runs of format 1, as they were written before pairs held plain texts, made readable; nothing is lost."""

import json
import shutil
from pathlib import Path

import pytest
from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.files import ROOT, display_path
from cai.core.run import Run, read_manifest
from cai.core.schema import FORMAT, content_id
from cai.generation import convert as conversion
from cai.generation.convert import convert
from cai.generation.pairs import build, make_pairs
from cai.generation.records import read_records
from cai.models.registry import REGISTRY, with_registry
from cai.models.session import prompt_settings
from cai.prompts.constitution import load
from cai.prompts.markers import CHANGE, KEEP

# The registry's values that were among a run's settings.
OLD_SPEC_SETTINGS = (
    *("kind", "shots", "requests", "list_shots", "seeds", "near_duplicate", "max_seq_length"),
    *("instruction_tokens", "answer_tokens", "critique_tokens", "lora_r", "lora_alpha", "learning_rate"),
    *("beta", "batch_size", "gradient_accumulation"),
)
FLAGS = {
    **{"model": "sandbox", "bits": 16, "seed": 0, "principles": 1, "limit": 8, "source": None},
    "constitution": load(ROOT / "constitution.yaml").hash,
    **{"anchors": 0.6, "no_judge": True, "held_out": 0.1, "steps": 10, "loss": None},
}
SPEC = REGISTRY["sandbox"]
ADAPTER = "0123456789ab" + "c" * 52
PARTS = ("generator", "answerer", "critic", "reviser", "judge")


class Killed(BaseException):
    """In place of SIGKILL."""


def old_record(number, adapter=None):
    instruction, revised = f"What is thing {number}? It is Response: 4", number % 3 != 0
    answer, revision = f" Thing {number} is tin.", f"Thing {number} is wood."
    pair = {"prompt": f"Instruction: {instruction}\nResponse:", "chosen": f" {revision}"}
    row = {
        "id": content_id(instruction),
        "instruction": instruction,
        "initial_answer": answer,
        "principle": "P.",
        "critique": f"It is so. {CHANGE if revised else KEEP}",
        "revised_answer": revision if revised else "",
        "preference_pair": pair | {"rejected": f" {answer}"} if revised else {},
        "task": "math",
        "source": "self_instruct",
        "critiques": [
            {"principle_id": "p", "principle": "P.", "critique": f"It is so. {CHANGE if revised else KEEP}"}
        ],
        "kept": revised,
        "rejected_because": [] if revised else ["no_change_needed"],
        "model": "sandbox",
        "adapter": adapter,
        "writers": dict.fromkeys(PARTS) | {"answerer": adapter, "judge": adapter and "stage-aaaaaaaaaaaa"},
        "seed": 0,
        "finish_reasons": ["stop", "stop"],
        "judgement": None,
        "tokens": {"prompt": 1, "completion": 2},
        "guard": None,
        "a key that nobody knows": "ü\u2028",
    }
    return row


def old_pair(row):
    return {
        **{"id": row["id"], **row["preference_pair"], "kind": "revision", "task": "math"},
        **{"principles": ["p"], "held_out": int(row["id"][:8], 16) % 1000 < 100},
    }


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """old_run(name, ...): a run of format 1 by its name; its directory"""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))

    def write(name, adapter=None, shards=1):
        data = tmp_path / "data" / name
        (data / "evaluation").mkdir(parents=True)
        rows = [old_record(n, adapter) for n in range(8)]
        instructions = [{k: r[k] for k in ("id", "instruction", "task", "source")} for r in rows]
        jsonl.append(data / "instructions.jsonl", instructions)
        for number in range(shards):
            part = "records.jsonl" if shards == 1 else f"records-{number + 1:03}-of-{shards:03}.jsonl"
            jsonl.append(data / part, [r for r in rows if int(r["id"][:8], 16) % shards == number])
        kept = sorted((r for r in rows if r["kept"]), key=lambda r: r["id"])
        jsonl.append(data / "pairs.jsonl", map(old_pair, kept))
        jsonl.append(data / "evaluation/answers.jsonl", [{"id": "1", "answer": "x"}])
        (data / "report.html").write_text("<p>old</p>")
        (data / "records.backup.jsonl").write_text("not a record\n")
        registry = {k: getattr(SPEC, k) for k in OLD_SPEC_SETTINGS}
        manifest = {
            "run": name,
            "settings": FLAGS | prompt_settings() | registry,
            "started": "2026-11-20T00:00:00+0000",
            "model": "sandbox",
            "device": "cpu",
            "revision": "r",
            "adapter": ADAPTER,
            "totals": {"seconds": 7.0, "prompt_tokens": 1, "completion_tokens": 2, "dollars": 3.0},
            "gate": {"verdict": "GO", "criteria": [{"name": "preference", "verdict": "GO", "value": 0.9}]},
            "facts": {"verdict": "as it was"},
        }
        (data / "run.json").write_text(json.dumps(manifest))
        return data

    return write


@pytest.mark.parametrize(("file", "text", "says"), [
    ("run.json", "{}", "run.json is damaged"),
    ("run.json", "[]", "run.json is damaged"),
    ("records.jsonl", '{"id": "x"}\n', "data/old/records.jsonl, line 1: the key 'instruction' is missing"),
    ("pairs.jsonl", '{"id": "x"}\n', "data/old/pairs.jsonl, line 1: the key 'prompt' is missing"),
])  # fmt: skip
def test_what_is_no_run_of_format_1_is_a_sentence_and_stays(old_run, file, text, says):
    data = old_run("old")
    (data / file).write_text(text)
    before = everything(data)
    with pytest.raises(UserError, match=says):
        convert("old")
    assert everything(data) == before


def test_a_run_that_was_only_trained_is_converted_with_its_training(old_run, tmp_path):
    data = old_run("old")
    manifest = json.loads((data / "run.json").read_text())
    (data / "run.json").write_text(json.dumps(manifest | {"settings": {"data": "mvp"}}))
    training = tmp_path / "checkpoints/old/training.json"
    training.parent.mkdir(parents=True)
    training.write_text(json.dumps({"settings": {"beta": 0.3}, "status": "finished"}))
    convert("old")
    assert json.loads(training.read_text())["settings"] == {"beta": 0.3, "warmup": 0.1}
    assert read_manifest("old")["settings"] == {"data": "mvp"}


def test_the_model_of_a_run_need_not_be_there_any_more(old_run):
    data = old_run("old")
    manifest = json.loads((data / "run.json").read_text())
    (data / "run.json").write_text(json.dumps(manifest | {"model": "/gone/model"}))
    convert("old")
    assert read_manifest("old")["settings"]["warmup"] == 0.1


def everything(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def settings():
    return with_registry(FLAGS | prompt_settings(), SPEC)


def test_a_run_of_format_1_is_refused_by_everybody_with_the_command(old_run):
    data = old_run("mvp")
    said = r"of format 1, this program reads 2: python scripts/runs.py --convert mvp makes it one"
    for ask in (
        lambda: Run.open("mvp", settings()),
        lambda: Run.reopen("mvp"),
        lambda: read_manifest("mvp"),
        lambda: read_records(data),
    ):
        with pytest.raises(UserError, match=said):
            ask()
    with Run.open("mvp", settings(), fresh=True) as run:  # the lock is free, and --fresh a way out
        assert run.manifest["format"] == FORMAT


@pytest.mark.parametrize("shards", [1, 2])
def test_a_converted_run_is_read_paired_and_opened_with_the_same_settings(old_run, shards):
    data = old_run("mvp", shards=shards)
    before = everything(data)
    aside = convert("mvp")
    assert everything(data.with_name("mvp~1")) == before and aside == display_path(data.with_name("mvp~1"))
    records = read_records(data)
    assert [r["id"] for r in records] == [old_record(n)["id"] for n in range(8)]
    with Run.open("mvp", settings()) as run:
        run.pin(revision="r")
        was = (data / "pairs.jsonl").read_bytes()
        rows = make_pairs(run, records, anchors=0.0, seed=0)
        assert (data / "pairs.jsonl").read_bytes() == was and len(rows) == 5
        assert run.dollars == 3.0 and run.manifest["adapter"] == ADAPTER
    with pytest.raises(UserError, match="seed was 0, now 1"):
        Run.open("mvp", settings() | {"seed": 1})


def test_texts_are_plain_and_nothing_else_has_changed(old_run):
    data = old_run("mvp")
    convert("mvp")
    for number, row in enumerate(read_records(data)):
        old = old_record(number)
        text = old["instruction"]
        if old["revised_answer"]:
            plain = {"prompt": text, "chosen": f"Thing {number} is wood.", "rejected": old["initial_answer"]}
            assert row["preference_pair"] == plain
        else:
            assert row["preference_pair"] is None
        new = {"format", "engine", "preference_pair", "roles"}
        assert {k: v for k, v in row.items() if k not in new} == {
            k: v for k, v in old.items() if k not in ("preference_pair", "writers")
        }
        assert row["format"] == FORMAT and row["engine"] == "local" and row["roles"] == dict.fromkeys(PARTS)
    assert jsonl.read(data / "pairs.jsonl", {}) == build(read_records(data), anchors=0.0, seed=0)
    manifest, old = read_manifest("mvp"), json.loads((data.with_name("mvp~1") / "run.json").read_text())
    assert manifest["gate"] == {
        "decision": "GO",
        "criteria": [{"name": "preference", "decision": "GO", "value": 0.9}],
    }
    changed = {"format", "settings", "gate"}
    assert {k: v for k, v in manifest.items() if k not in changed} == {
        k: v for k, v in old.items() if k not in changed
    }
    same = {"evaluation/answers.jsonl", "report.html", "records.backup.jsonl", "instructions.jsonl"}
    then, now = everything(data.with_name("mvp~1")), everything(data)
    assert {k: now[k] for k in same} == {k: then[k] for k in same} and set(now) == set(then)


def test_a_training_says_the_warm_up_that_was_a_constant(old_run, tmp_path):
    old_run("mvp")
    path = tmp_path / "checkpoints/mvp/training.json"
    path.parent.mkdir(parents=True)
    training = {"settings": {"steps": 10, "pairs": "beeb11e3cd6f8a19"}, "status": "finished"}
    path.write_text(json.dumps(training))
    convert("mvp")
    training["settings"]["warmup"] = 0.1
    assert json.loads(path.read_text()) == training and [p.name for p in path.parent.iterdir()] == [path.name]


def test_loaded_names_become_hashes_whole_where_the_manifest_has_them(old_run):
    data = old_run("mvp", adapter=f"stage-{ADAPTER[:12]}")
    convert("mvp")
    for row in read_records(data):
        assert row["adapter"] == row["roles"]["answerer"] == ADAPTER
        assert row["roles"]["judge"] == "aaaaaaaaaaaa" and row["roles"]["critic"] is None


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": 3}'])
def test_a_damaged_training_and_links_stay_as_they_are(old_run, tmp_path, text):
    data, path = old_run("mvp"), tmp_path / "checkpoints/mvp/training.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (data / "gone").symlink_to("nowhere")
    convert("mvp")
    assert path.read_text() == text and (data / "gone").is_symlink() and len(read_records(data)) == 8


def test_killed_between_the_two_moves_it_finds_the_old_one_among_others(old_run, monkeypatch):
    data = old_run("mvp")
    data.with_name("mvp~mine").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "move_aside", lambda path: path.rename(path.with_name("mvp~1")) and _die())
        with pytest.raises(Killed):
            convert("mvp")
    assert not data.exists()
    assert convert("mvp") == display_path(data.with_name("mvp~1")) and len(read_records(data)) == 8


def _die():
    raise Killed


def test_a_run_of_no_records_and_one_of_a_stage(old_run, tmp_path):
    data = old_run("plan/stage")
    for path in data.glob("*.jsonl"):
        path.unlink()
    manifest = json.loads((data / "run.json").read_text())
    del manifest["settings"]["kind"]
    (data / "run.json").write_text(json.dumps(manifest))
    convert("plan/stage")
    assert read_manifest("plan/stage")["settings"] == manifest["settings"] and read_records(data) == []


STEPS = [(shutil, "copytree"), (jsonl, "append"), (conversion, "write_json"), (conversion, "move_aside")]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("call", range(8))
def test_killed_in_the_middle_it_can_be_run_again(old_run, monkeypatch, call, before):
    data = old_run("mvp")
    convert(old_run("whole").name)
    was, expected, calls = everything(data), everything(data.with_name("whole")), []

    def dying(function):
        def step(*args, **more):
            calls.append(function)
            number = len(calls) - 1
            if before and number == call:
                raise Killed
            found = function(*args, **more)
            if number == call:
                raise Killed
            return found

        return step

    with monkeypatch.context() as patch:
        for place, name in STEPS:
            patch.setattr(place, name, dying(getattr(place, name)))
        patch.setattr(Path, "rename", dying(Path.rename))
        with pytest.raises(Killed):
            convert("mvp")
    if not data.exists() or json.loads((data / "run.json").read_text()).get("format") != FORMAT:
        assert convert("mvp") == display_path(data.with_name("mvp~1"))
    now = everything(data)
    assert {k: v for k, v in now.items() if k != "run.json"} == {
        k: v for k, v in expected.items() if k != "run.json"
    }
    assert everything(data.with_name("mvp~1")) == was
    assert read_manifest("mvp") == json.loads(expected["run.json"]) | {"run": "mvp"}
    assert {p.name for p in data.parent.iterdir()} == {"mvp", "mvp~1", "whole", "whole~1"}


def test_converted_twice_or_of_another_format_or_none_is_refused(old_run, tmp_path):
    data = old_run("mvp")
    convert("mvp")
    was = everything(data)
    with pytest.raises(UserError, match="'mvp' is of format 2 already"):
        convert("mvp")
    assert everything(data) == was and not data.with_name("mvp~2").exists()
    with pytest.raises(UserError, match="there is no run 'none'"):
        convert("none")
    with pytest.raises(UserError, match="--run '../mvp'"):
        convert("../mvp")
    (data / "run.json").write_text("{")
    with pytest.raises(UserError, match="damaged: restore it"):
        convert("mvp")


def test_a_run_in_use_is_not_converted(old_run):
    old_run("mvp")
    with conversion.lock_run("mvp"), pytest.raises(UserError, match="in use by another process"):
        convert("mvp")
    convert("mvp")
