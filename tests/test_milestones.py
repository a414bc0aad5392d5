"""Milestones 1 to 3, whole, on the sandbox."""

import json

import processes
import pytest
from cai.core.files import ROOT
from cai.core.jsonl import read
from cai.core.schema import PAIR_KEYS, RECORD_KEYS, is_held_out
from cai.models.model import check_adapter
from cai.models.registry import REGISTRY
from rows import assert_same_rows

FILES = {
    "run.json",
    "instructions.jsonl",
    "records.jsonl",
    "pairs.jsonl",
    "report.html",
    "yields.png",
    "evaluation",
}


def script(name, *args, output):
    return processes.script(name, "--model", "sandbox", *args, output=output)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    output = tmp_path_factory.mktemp("batch")
    return script("test_batch.py", "--force", "--limit", "24", output=output), output


def test_m1_generates_trains_measures_and_decides(batch):
    done, output = batch
    assert done.returncode in (0, 3, 5), done.stdout[-2000:] + done.stderr
    data = output / "data/batch"
    assert {p.name for p in data.iterdir()} == FILES
    records, pairs = read(data / "records.jsonl", RECORD_KEYS), read(data / "pairs.jsonl", PAIR_KEYS)
    manifest = json.loads((data / "run.json").read_text())
    assert len(records) == 24 == len({r["id"] for r in records}) == manifest["counts"]["records"]
    assert all(len(r["critiques"]) == 2 for r in records)
    assert all(r["kept"] != bool(r["rejected_because"]) for r in records)
    by_id = {r["id"]: r for r in records}
    for pair in pairs:
        record = by_id[pair["id"]]
        assert record["instruction"] in pair["prompt"] and pair["held_out"] == is_held_out(pair["id"])
        if pair["kind"] == "revision":
            assert (pair["chosen"], pair["rejected"]) == (
                record["revised_answer"],
                record["initial_answer"],
            )
    assert {p["kind"] for p in pairs} <= {"revision", "anchor"} and pairs
    assert manifest["adapter"] == check_adapter(output / "checkpoints/batch", REGISTRY["sandbox"])["sha256"]
    assert (manifest["gate"]["decision"] == "GO") == (done.returncode == 0)
    for criterion in manifest["gate"]["criteria"]:
        assert criterion["measured"] and criterion["look_at"]
    assert {p.name for p in (data / "evaluation").iterdir()} >= {"preference.json", "critique.json"}
    assert "steps" in manifest["training"] and manifest["training"]["steps"] == 10


@pytest.mark.slow
def test_a_model_that_was_hardly_trained_passes_no_gate(tmp_path):
    """Two steps: M2 said GO by four held-out pairs and a win rate of .51."""
    some = ("--force", "--steps", "2")
    slow = ("--force", "--set", "learning_rate=1e-8", "--run", "slow")
    one, still = (script("test_batch.py", *flags, output=tmp_path) for flags in (some, slow))
    two = script("generate_mvp.py", *some, "--limit", "12", output=tmp_path)
    for done in (one, still, two):
        assert done.returncode in (3, 5), done.stdout[-2000:] + done.stderr
    manifest = json.loads((tmp_path / "data/mvp/run.json").read_text())
    by_name = {c["name"]: c for c in manifest["gate"]["criteria"]}
    assert by_name["on-policy completions better"]["passed"] is not True
    assert by_name["revisions preferred"]["passed"] is None or by_name["revisions preferred"]["n"] >= 20
    assert by_name["revisions preferred"]["n"] >= 20 or manifest["counts"]["records"] == 12 + 400


def test_m1_waits_for_the_gate_of_m0(tmp_path):
    done = script("test_batch.py", output=tmp_path)
    assert done.returncode == 2 and "there is no run 'single' yet" in done.stderr and "--force" in done.stderr


def test_a_large_model_is_forecast_for_an_a100_where_there_is_no_gpu(tmp_path):
    done = script("generate_mvp.py", "--forecast", "--model", "Qwen/Qwen2.5-32B", output=tmp_path)
    assert done.returncode == 0 and "on one A100 80GB" in done.stdout and "$1.74" in done.stdout
    assert "vLLM FP8 (chosen)" in done.stdout and "local NF4" in done.stdout
    m1 = script("test_batch.py", "--forecast", "--model", "Qwen/Qwen2.5-32B", output=tmp_path)
    assert "in 4 bits on one A100 80GB" in m1.stdout and "vLLM" not in m1.stdout  # in this process
    small = script("generate_mvp.py", "--forecast", "--model", "Qwen/Qwen2.5-0.5B", output=tmp_path)
    assert "on cpu" in small.stdout


@pytest.mark.parametrize("name", ["test_batch.py", "generate_mvp.py", "generate_full.py"])
def test_forecast_prints_and_does_nothing(name, tmp_path):
    done = script(name, "--forecast", output=tmp_path)
    assert done.returncode == 0 and "assumed" in done.stdout and "critique" in done.stdout
    assert not (tmp_path / "data").exists()


def test_a_forecast_counts_the_steps_that_were_asked_for(tmp_path):
    done = script("generate_mvp.py", "--forecast", "--steps", "77", "--held-out", "0.5", output=tmp_path)
    assert done.returncode == 0 and "77 steps" in done.stdout, done.stderr
    done = script(
        "generate_full.py", "--forecast", "--steps", "77", output=tmp_path
    )  # its training is another's
    assert done.returncode == 2 and "--steps" in done.stderr


@pytest.mark.parametrize(("args", "said"), [
    (["--limit", "0"], "at least one"),
    (["--principles", "0"], "at least 1"),
    (["--principles", "99"], "15"),
    (["--anchors", "-1"], "share"),
    (["--source", "none.csv"], "none.csv"),
    (["--budget", "-3"], "above 0"),
    (["--held-out", "0"], "a share above 0, and at most 0.5"),
    (["--held-out", "0.6"], "a share above 0, and at most 0.5"),
    (["--held-out", "nan"], "a share above 0, and at most 0.5"),
    (["--held-out", "some"], "invalid float value"),
    (["--steps", "0"], "at least one step"),
    (["--steps", "0", "--forecast"], "at least one step"),
    (["--limit", "-1", "--forecast"], "at least one"),
    (["--run", "../x", "--forecast"], "--run '../x': use letters, digits"),
    (["--after", "nosuch", "--forecast"], "--after nosuch: there is no such run"),
    (["--after", "nosuch"], "--after nosuch: there is no such run"),
    (["--constitution", "a b\n", "--forecast"], r"--constitution 'a b\n': there is no such file"),
    (["--source", "none.csv", "--forecast"], "none.csv"),
    (["--source", str(ROOT / "tests")], "tests"),
    (["--principles", "99", "--forecast"], "15"),
    (["--set", "max_seq_length=100000"], "sandbox reads at most 1024 tokens"),
    (["--set", "heldout=README.md"], "README.md, line 1: not JSON"),
    (["--bits", "8"], "--bits 8 needs a CUDA GPU"),
    (["--model", str(ROOT / "tests")], "is no model directory"),
    (["--model", "a" * 5000], "neither in the registry"),
    (["--hourly-rate", "1e7"], "above the $150 that a command may cost: give --budget DOLLARS"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_status_2(tmp_path, args, said):
    done = script("test_batch.py", "--force", *args, output=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("args", "said"), [
    (["--guard", "nosuch"], "--guard 'nosuch' is neither"),
    (["--guard", "nosuch", "--forecast"], "--guard 'nosuch' is neither"),
    (["--shard", "3/2"], "--shard '3/2': write the part"),
    (["--shard", "0/1"], "--shard '0/1': write the part"),
    (["--shard", "1/" + "9" * 5000], "write the part and the number of parts (at most 999)"),
    (["--after", "nosuch"], "--after nosuch: there is no such run"),
    (["--source", "none.csv", "--forecast"], "none.csv"),
])  # fmt: skip
def test_m3_finds_bad_input_before_anything_is_written(tmp_path, args, said):
    done = script("generate_full.py", "--force", *args, output=tmp_path)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["test_single.py", "test_batch.py", "generate_full.py"])
def test_a_budget_covers_the_loading(name, tmp_path):
    force = [] if name == "test_single.py" else ["--force"]
    done = script(name, *force, "--hourly-rate", "3600", "--budget", "0.01", output=tmp_path)
    assert done.returncode == 4 and "loading would cost about" in done.stderr, done.stderr
    assert "larger --budget" in done.stderr and not list(tmp_path.glob("data/*/*.jsonl"))


def test_a_budget_stops_cleanly_and_a_larger_one_goes_on(tmp_path):
    some = ("--force", "--limit", "12", "--hourly-rate", "3600")
    stopped = script("test_batch.py", *some, "--budget", "0.5", output=tmp_path)
    assert (
        stopped.returncode == 4 and "larger --budget" in stopped.stderr and "Traceback" not in stopped.stderr
    )
    done = script("test_batch.py", *some, "--budget", "100000", output=tmp_path)
    assert done.returncode in (0, 3, 5), done.stderr


def test_killed_at_many_moments_it_ends_with_the_rows_of_an_undisturbed_run(batch, tmp_path):
    _, output = batch
    some = ("--force", "--limit", "24")
    for line in ("^run:   batch", r"^\[1\] ", r"^\[2\] ", r"^\[3\] ", "^critique:"):
        processes.kill_at(line, "test_batch.py", "--model", "sandbox", *some, output=tmp_path)
    done = script("test_batch.py", *some, output=tmp_path)
    assert done.returncode in (0, 3, 5), done.stdout + done.stderr
    assert_same_rows(tmp_path / "data/batch", output / "data/batch")


def test_m3_shards_merge_by_reading(tmp_path):
    some = ("--force", "--limit", "20", "--no-judge")
    whole = script("generate_full.py", *some, "--run", "whole", output=tmp_path)
    first = script("generate_full.py", *some, "--run", "parts", "--shard", "1/2", output=tmp_path)
    assert whole.returncode in (0, 3, 5) and first.returncode == 0, whole.stderr + first.stderr
    assert (
        "other shards" in first.stdout
        and "Data gate" not in first.stdout
        and not (tmp_path / "data/parts/pairs.jsonl").exists()
    )
    second = script("generate_full.py", *some, "--run", "parts", "--shard", "2/2", output=tmp_path)
    assert second.returncode == whole.returncode, second.stderr
    gates = [
        json.loads((tmp_path / f"data/{run}/run.json").read_text())["data_gate"] for run in ("whole", "parts")
    ]
    assert [c["measured"] for c in gates[0]["criteria"]] == [c["measured"] for c in gates[1]["criteria"]]
    assert (gates[0]["decision"] == "GO") == (whole.returncode == 0)
    assert any("20 of 20" in c["measured"] for c in gates[0]["criteria"])
    assert any("guard" in c["name"] for c in gates[0]["criteria"])
    assert json.loads((tmp_path / "data/parts/run.json").read_text())["counts"]["records"] == 20
    assert (tmp_path / "data/parts/pairs.jsonl").read_bytes() == (
        tmp_path / "data/whole/pairs.jsonl"
    ).read_bytes()
    assert all("guard" in r for r in read(tmp_path / "data/whole/records.jsonl", RECORD_KEYS))
