"""scripts/bootstrap.py on the sandbox: bad input, a starved plan, whole small plans, kills."""

import json
import os
import signal
import subprocess
import sys
from textwrap import dedent

import pytest
from cai.bootstrap import report
from cai.bootstrap.controls import CONTROLS
from cai.core.files import ROOT, sha256_file
from cai.core.jsonl import read
from cai.core.prompt_files import load_heldout
from cai.core.schema import PAIR_KEYS, RECORD_KEYS
from cai.evaluation import test_sets
from cai.generation.dedup import EvaluationPrompts
from cai.generation.records import read_instructions
from cai.models.model import check_adapter
from cai.models.registry import REGISTRY
from cai.prompts.markers import CHANGE
from rows import assert_same_rows

# Gates and limits let everything pass: what is tested is that stages work, not how well 24 examples teach.
TINY = """
    title: Two small stages
    tests: 4
    principles: [accuracy]
    every:
      least_pairs: 1
      passes: 1
      gate: {success: 0}
      limits: {perplexity: 100, distinct_2: 0, repeated_endings: 1, clean_stops: 0, refusals: 1, exemplars: 1,
               length: 1000, critic: 1}
    stages:
      - {name: facts, tasks: [factual_qa], examples: 24}
      - {name: few, tasks: [factual_qa, explanation], examples: 24}
"""
FIRST = ["shuffled_critiques", "random_pairs"]
RUNS = ["facts", *(f"facts.{a}" for a in FIRST), "few", *(f"few.{a}" for a in CONTROLS)]


def command(*args):
    return [sys.executable, str(ROOT / "scripts/bootstrap.py"), "--model", "sandbox", *map(str, args)]


def environment(output):
    return os.environ | {"CAI_OUTPUT": str(output), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def bootstrap(output, *args):
    return subprocess.run(
        command(*args), env=environment(output), capture_output=True, text=True, cwd=ROOT, timeout=1800
    )


def write_plan(directory, text=TINY, name="tiny"):
    path = directory / f"{name}.yaml"
    path.write_text(dedent(text), encoding="utf-8")
    return path


def refused(done, *said):
    """A user's error: status 2, one sentence (a plan's mistakes are a list), no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stderr.startswith("error: ")
    assert all(text in done.stderr for text in said), done.stderr
    return True


# ---- before anything is loaded ----


@pytest.mark.parametrize(("args", "said"), [
    (["--seeds", "0", "0"], "different numbers from 0 on"),
    (["--seeds", "0", "-1"], "different numbers from 0 on"),
    (["--resume"], "there is no run 'tiny' to go on from"),
    (["--budget", "0"], "dollars above 0"),
    (["--run", "../tiny"], "use letters, digits"),
    (["--constitution", "none.yaml"], "none.yaml"),
    (["--model", "sandbx"], "sandbx"),
    (["--set", "answer_temperatur=1"], "--set 'answer_temperatur=1'"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_status_2(tmp_path, args, said):
    done = bootstrap(tmp_path / "output", "--plan", write_plan(tmp_path), *args)
    assert refused(done, said) and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("output/data/*/*/"))  # no stage was begun


def test_a_bad_plan_is_refused_with_its_mistakes(tmp_path):
    text = TINY.replace("[factual_qa]", "[factual_aq]").replace("passes: 1", "passes: -1")
    done = bootstrap(tmp_path / "output", "--plan", write_plan(tmp_path, text))
    assert refused(done, "tiny.yaml", "did you mean 'factual_qa'", "passes: -1 must be")
    assert not (tmp_path / "output").exists()
    refused(bootstrap(tmp_path / "output", "--plan", "progresive"), "did you mean 'progressive'")
    done = bootstrap(tmp_path / "output", "--plan", write_plan(tmp_path), "--controls", "random")
    assert done.returncode == 2 and "random_pairs" in done.stderr and "Traceback" not in done.stderr


def test_a_forecast_does_nothing_else(tmp_path):
    done = bootstrap(tmp_path / "output", "--plan", write_plan(tmp_path), "--controls", "all", "--forecast")
    assert done.returncode == 0 and "few" in done.stdout, done.stderr
    assert not (tmp_path / "output/data").exists()


# ---- starved on purpose ----


def test_a_starved_plan_stops_at_its_gate_and_says_so(tmp_path):
    text = TINY.replace("least_pairs: 1", "least_pairs: 10000").replace("examples: 24", "examples: 6")
    plan, output = write_plan(tmp_path, text), tmp_path / "output"
    done = bootstrap(output, "--plan", plan, "--controls", "all")
    assert done.returncode == 3, done.stdout[-2000:] + done.stderr
    assert "stopped: seed 0, stage facts: pairs to train on" in done.stdout
    assert "of 6 examples (needs at least 10000)" in done.stdout and "--force" in done.stdout
    data = output / "data/tiny"
    results = report.read(data)
    assert [r["run"] for r in results["runs"]] == ["tiny/facts"]
    assert not results["finished"] and "stage facts" in results["stopped"]
    assert results["runs"][0]["adapter"] is None and not (output / "checkpoints").exists()
    assert (data / "report.html").exists() and (data / "report.md").exists()
    # What the rows depend on cannot change under them; the same command may not even begin.
    write_plan(tmp_path, text.replace("examples: 6", "examples: 7"))
    done = bootstrap(output, "--plan", plan)
    assert refused(done, "'tiny/facts'", "stage_examples was 6, now 7", "--fresh")
    write_plan(tmp_path, text)
    warm = bootstrap(output, "--plan", plan, "--set", "answer_temperature=0.9")
    refused(warm, "'tiny/facts'", "answer_temperature was 0.7, now 0.9")
    other = tmp_path / "constitution.yaml"
    other.write_text(
        (ROOT / "constitution.yaml").read_text().replace("The response should", "The response must", 1)
    )
    refused(bootstrap(output, "--plan", plan, "--constitution", other), "'tiny/facts'", "constitution was")


# ---- whole plans ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(finished process, output, plan) of the tiny plan with all controls, undisturbed."""
    home = tmp_path_factory.mktemp("whole")
    plan = write_plan(home)
    return bootstrap(home / "output", "--plan", plan, "--controls", "all"), home / "output", plan


def contents(directory, but=()):
    return {
        str(p.relative_to(directory)): sha256_file(p)
        for p in sorted(directory.rglob("*"))
        if p.is_file() and p.name not in but
    }


def rows_of(output, run):
    data = output / "data/tiny" / run
    return read(data / "records.jsonl", RECORD_KEYS), read(data / "pairs.jsonl", PAIR_KEYS)


@pytest.mark.slow
def test_a_plan_ends_with_all_its_runs_and_a_report(whole):
    done, output, _ = whole
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    data = output / "data/tiny"
    assert {p.name for p in data.iterdir() if p.is_dir()} == {*RUNS, "plots"}
    results = report.read(data)
    assert [r["run"] for r in results["runs"]] == [f"tiny/{name}" for name in RUNS]
    assert (results["finished"], results["stopped"], results["seeds"]) == (True, None, [0])
    for row in results["runs"]:
        assert row["examples"] == 24 and row["pairs"] + row["anchors"] >= 1
        assert set(test_sets.ALL_TASKS[:10]) <= row["success"].keys()
        for success in (*row["success"].values(), row["average"], row["safety"]["harmful refused"]):
            assert all(0 <= success[who]["value"] <= 1 and success[who]["n"] for who in ("base", "trained"))
        assert {len(v) for v in row["probes"].values()} != {0} and len(row["guardrails"]) >= 8
        assert 0 <= row["label_accuracy"]["value"] <= 1 and row["seconds"] > 0 and row["tokens"]["completion"]
    base = {json.dumps([r["average"]["base"], r["probes"]["base"]]) for r in results["runs"]}
    assert len(base) == 1  # the base model is the same whatever was trained beside it
    page, notes = (data / "report.html").read_text(), (data / "report.md").read_text()
    assert "Two small stages" in page and "One seed only" in page and "base helps instead" in notes
    assert "report.html" in done.stdout and list((data / "plots").glob("*.png"))


@pytest.mark.slow
def test_adapters_have_their_lineage(whole):
    _, output, _ = whole
    rows = {r["run"].removeprefix("tiny/"): r for r in report.read(output / "data/tiny")["runs"]}
    facts = rows["facts"]["adapter"]
    for name, row in rows.items():
        place = output / "checkpoints/tiny" / name
        assert row["adapter"] == check_adapter(place, REGISTRY["sandbox"])["sha256"]
        training = json.loads((place / "training.json").read_text())
        assert training["settings"]["from"] == row["parent"]
        parent = facts if name.startswith("few") and name != "few.from_base" else None
        assert row["parent"] == parent, name
    assert len({r["adapter"] for r in rows.values()}) == len({r["data_hash"] for r in rows.values()}) == 8


@pytest.mark.slow
def test_the_predecessor_helps_and_the_controls_differ_in_one_thing(whole):
    _, output, _ = whole
    rows = {r["run"].removeprefix("tiny/"): r for r in report.read(output / "data/tiny")["runs"]}
    helper = rows["facts"]["adapter"]
    done, pairs = rows_of(output, "few")
    assert {r["roles"]["answerer"] for r in done} == {r["roles"]["generator"] for r in done} == {helper}
    assert {r["adapter"] for r in done} == {helper}
    helped, _ = rows_of(output, "few.base_helper")
    assert {who for r in helped for who in r["roles"].values()} == {None}
    assert set(rows["few.base_helper"]["roles"].values()) == {"base"} and len(helped) == len(done)

    mixed, _ = rows_of(output, "few.shuffled_critiques")
    assert [(r["id"], r["initial_answer"]) for r in mixed] == [(r["id"], r["initial_answer"]) for r in done]
    changed = [r["critique"].endswith(CHANGE) for r in done]
    own = [a["critique"] == b["critique"] for a, b in zip(done, mixed, strict=True)]
    assert sum(changed) >= 2 and not any(same for same, c in zip(own, changed, strict=True) if c)
    assert all(same for same, c in zip(own, changed, strict=True) if not c)

    _, tossed = rows_of(output, "few.random_pairs")
    assert [{p["chosen"], p["rejected"]} for p in tossed] == [{p["chosen"], p["rejected"]} for p in pairs]
    turned = [a["chosen"] != b["chosen"] for a, b in zip(tossed, pairs, strict=True)]
    assert 0 < sum(turned) < len(pairs)
    assert not any(t for t, p in zip(turned, pairs, strict=True) if p["held_out"])
    _, earlier = rows_of(output, "facts")
    _, together = rows_of(output, "few.from_base")
    assert {(p["id"], p["kind"]) for p in together} == {(p["id"], p["kind"]) for p in earlier + pairs}


@pytest.mark.slow
def test_no_generator_wrote_a_held_out_prompt(whole):
    _, output, _ = whole
    sandbox = REGISTRY["sandbox"]
    heldout = [h.instruction for h in load_heldout(ROOT / sandbox.heldout)]
    barred = EvaluationPrompts([*heldout, *test_sets.test_instructions(sandbox)])
    written = [r for name in ("facts", "few", "few.base_helper")
               for r in read_instructions(output / "data/tiny" / name)]  # fmt: skip
    assert len(written) == 72 and not [r["instruction"] for r in written if barred.near(r["instruction"])]


@pytest.mark.slow
def test_a_rerun_does_nothing_and_changes_nothing(whole):
    _, output, plan = whole
    noted = ("run.json",)  # the call's own arguments
    before, spent = contents(output / "data", noted), (output / "logs/ledger.jsonl").read_bytes()
    adapters = contents(output / "checkpoints")
    done = bootstrap(output, "--plan", plan, "--controls", "all", "--resume")
    assert done.returncode == 0, done.stderr
    assert (output / "logs/ledger.jsonl").read_bytes() == spent  # no step was taken, not even loading
    assert contents(output / "data", noted) == before and contents(output / "checkpoints") == adapters


@pytest.mark.slow
def test_killed_in_the_second_stage_it_ends_with_the_rows_and_adapters_of_an_undisturbed_run(whole, tmp_path):
    _, undisturbed, plan = whole
    second = tmp_path / "checkpoints/tiny/few/training.jsonl"
    kill_at = [  # from generation, from training, from measurement
        lambda line: line.startswith("[1] "),
        lambda line: line.startswith("training: "),
        lambda line: line.startswith("success at held-out"),
    ]
    for number, there in enumerate(kill_at):
        process = subprocess.Popen(
            command("--plan", plan), env=environment(tmp_path), cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        begun = False
        for line in process.stdout:
            begun = begun or line.startswith("== tiny/few")
            if begun and there(line):
                break
        else:
            pytest.fail(f"the run ended before moment {number}")
        while number == 1 and not (second.exists() and second.read_bytes().count(b'"train"') >= 3):
            try:
                process.wait(0.02)
                pytest.fail("the training ended before the kill")
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    done = bootstrap(tmp_path, "--plan", plan, "--resume")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    for name in ("facts", "few"):
        data = [o / "data/tiny" / name for o in (tmp_path, undisturbed)]
        assert_same_rows(*data)
        for suite in ("success", "forgetting"):
            rows = [(d / f"evaluation/{suite}.jsonl").read_bytes() for d in data]
            assert rows[0] == rows[1], f"{name}/{suite}"
    costs = ("seconds", "dollars", "tokens")
    first, again = (
        [{k: v for k, v in r.items() if k not in costs} for r in report.read(o / "data/tiny")["runs"]
         if r["arm"] == "main"]
        for o in (undisturbed, tmp_path)
    )  # fmt: skip
    assert again == json.loads(json.dumps(first).replace(str(undisturbed), str(tmp_path)))
