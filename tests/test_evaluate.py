"""scripts/evaluate.py on the sandbox: a small run that was really trained, measured whole; and bad input."""

import json
import re
import shutil

import pytest
from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.run import Run
from cai.models.model import check_adapter
from cai.models.registry import REGISTRY
from cai.prompts.markers import CHAT_TOKENS
from hand_made import make_run, train
from processes import script

SUITES = ("preference", "critique", "forgetting", "truth", "probes")


def evaluate(output, *args):
    return script("evaluate.py", *args, output=output)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(the finished script, its output directory, the pairs, the adapter's hash)"""
    from cai.models.loader import load

    output = tmp_path_factory.mktemp("evaluate")
    _, pairs = make_run(output / "data/tiny", n=60)
    digest = train(load(REGISTRY["sandbox"]), pairs, output / "checkpoints/tiny")
    done = evaluate(output, "--run", "tiny", "--suite", *SUITES, "--limit", "16")
    return done, output, pairs, digest


def summary(output, suite):
    return json.loads((output / f"data/tiny/evaluation/{suite}.json").read_text())


def test_it_writes_what_it_says_and_nothing_else(evaluated):
    done, output, _, digest = evaluated
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (output / "data/tiny/evaluation").iterdir()}
    assert names == {f"{suite}.{end}" for suite in SUITES for end in ("json", "jsonl")}
    for suite in SUITES:
        found = summary(output, suite)
        assert found["suite"] == suite and found["run"] == "tiny"
        assert found["adapter"] == (None if suite == "critique" else digest)
        assert f"{suite}.json and .jsonl" in done.stdout
    assert digest == check_adapter(output / "checkpoints/tiny", REGISTRY["sandbox"])["sha256"]
    assert done.stdout.rstrip().splitlines()[-1].startswith("next: ")


def test_its_numbers_follow_from_its_rows(evaluated):
    _, output, pairs, _ = evaluated
    rows = jsonl.read(output / "data/tiny/evaluation/preference.jsonl", {"id": str})
    metrics = summary(output, "preference")["metrics"]
    held = [r for r in rows if r["id"].startswith("pair/") and r["held_out"] and r["kind"] == "revision"]
    assert {r["pair"] for r in held} == {p["id"] for p in pairs if p["held_out"] and p["kind"] == "revision"}
    found = metrics["held-out revision pairs: accuracy"]
    assert found["n"] == len(held) > 4
    assert found["value"] == pytest.approx(sum(r["margin"] > 0 for r in held) / len(held), abs=1e-4)
    judged = [r for r in rows if r["id"].startswith("judgement/bare/")]
    assert metrics["on-policy completions: win rate"]["n"] == len(judged) == 16
    assert all(r["score"] == 0.5 for r in judged if r["base"] == r["trained"])
    assert all(r["judgement"] is not None for r in judged if r["base"] != r["trained"])


def test_training_shows_in_the_rewards_of_what_was_trained_on(evaluated):
    """Ten steps on two score of pairs: their rewards must part, or base and adapter were mixed up."""
    metrics = summary(evaluated[1], "preference")["metrics"]
    assert metrics["training revision pairs: accuracy"]["value"] > 0.8
    low, _ = metrics["training revision pairs: margin"]["interval"]
    assert low > 0


def test_the_trained_model_is_measured_and_not_the_base_twice(evaluated):
    for suite in ("forgetting", "truth"):
        rows = jsonl.read(evaluated[1] / f"data/tiny/evaluation/{suite}.jsonl", {"id": str})
        answers = [r for r in rows if r["id"].startswith("answer/")]
        assert {r["by"] for r in answers} == {"base", "trained"}
        texts = {(r["by"], r["format"], r["instruction"]): r["answer"] for r in answers}
        assert any(
            text != texts["trained", form, i]
            for (by, form, i), text in texts.items()
            if by == "base"
            if ("trained", form, i) in texts
        )
    ratio = summary(evaluated[1], "forgetting")["metrics"]["perplexity on neutral text, trained / base"]
    assert ratio["n"] == 40 and 0.7 < ratio["value"] < 1.5
    rows = jsonl.read(evaluated[1] / "data/tiny/evaluation/forgetting.jsonl", {"id": str})
    scores = {(r["by"], r["text"]): r["logprob"] for r in rows if r["id"].startswith("passage/")}
    assert all(scores["trained", text] != score for (by, text), score in scores.items() if by == "base")
    assert not any(token in text for text in texts.values() for token in CHAT_TOKENS)


def test_a_second_look_at_the_critiques_needs_no_model_and_fresh_moves_the_first_aside(evaluated):
    _, output, _, _ = evaluated
    before = summary(output, "critique")
    done = evaluate(output, "--run", "tiny", "--suite", "critique", "--limit", "16")
    assert done.returncode == 0 and "model:" not in done.stdout, done.stderr
    assert summary(output, "critique") == before
    done = evaluate(output, "--run", "tiny", "--suite", "critique", "--limit", "16", "--fresh")
    assert done.returncode == 0, done.stderr
    data = output / "data/tiny"
    assert {p.name for p in (data / "evaluation").iterdir()} == {"critique.json", "critique.jsonl"}
    (data / "evaluation").rename(data / "fresh")
    (data / "evaluation~1").rename(data / "evaluation")


def test_a_forecast_and_a_small_budget_load_nothing(evaluated, tmp_path):
    _, output, pairs, _ = evaluated
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    ledger = (tmp_path / "logs/ledger.jsonl").read_text()
    done = evaluate(tmp_path, "--run", "tiny", "--forecast")
    assert done.returncode == 0 and f"forecast for {len(pairs)} pairs: sandbox in 16 bits" in done.stdout
    assert "1 evaluation " in done.stdout and "model:" not in done.stdout, done.stderr
    done = evaluate(tmp_path, "--run", "tiny", "--suite", "critique", "--forecast")
    assert done.returncode == 0 and "nothing to pay" in done.stdout
    done = evaluate(tmp_path, "--run", "tiny", "--fresh", "--hourly-rate", "1e9")
    assert (
        done.returncode == 2
        and "above the $150" in done.stderr
        and not (tmp_path / "data/tiny/evaluation~1").exists()
    )
    done = evaluate(tmp_path, "--run", "tiny", "--hourly-rate", "3600", "--budget", "0.001")
    assert done.returncode == 4 and "loading would cost about" in done.stderr, done.stderr
    assert (tmp_path / "logs/ledger.jsonl").read_text() == ledger
    path = tmp_path / "data/tiny/run.json"
    manifest = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            manifest | {"settings": manifest["settings"] | {"model": "Qwen/Qwen2.5-0.5B"}, "model": None}
        )
    )
    done = evaluate(tmp_path, "--run", "tiny", "--suite", "truth")
    assert done.returncode == 2 and "the sandbox's invented world" in done.stderr, done.stderr


TRAINED = {
    "argv": ["train_dpo.py"],
    "status": "finished",
    "steps": 10,
    "after": {"held_out": {"n": 2, "fall": 0.1}},
}


def gate(output, *args):
    return evaluate(output, "--run", "tiny", "--gate", "--limit", "16", *args)


def test_the_gate_takes_summaries_of_this_adapter_and_these_marks_and_is_recorded(evaluated, tmp_path):
    _, output, pairs, digest = evaluated
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    done = gate(tmp_path, "--suite", "critique")
    assert done.returncode == 2 and "runs that train_dpo.py has trained; 'tiny' is none" in done.stderr
    path = tmp_path / "data/tiny/run.json"
    manifest = json.loads(path.read_text()) | {"adapter": digest, "training": TRAINED}
    path.write_text(json.dumps(manifest))
    done = gate(tmp_path, "--suite", "critique")  # which needs no model: the two others were measured before
    assert done.returncode in (0, 3, 5) and "model:" not in done.stdout, done.stderr
    found = json.loads(path.read_text())["gate"]
    assert found["decision"] == {0: "GO", 3: "NO-GO", 5: "UNDECIDED"}[done.returncode]
    assert (found["decision"] == "GO") == all(c["passed"] for c in found["criteria"])
    assert found["adapter"] == digest
    names = [c["name"] for c in found["criteria"]]
    assert len(names) == 7 and names[-1] == "harmful requests refused more often"
    assert all(c["n"] and c["interval"] for c in found["criteria"] if c["name"] != "training not displaced")
    assert f"{found['decision']} for tiny" in done.stdout

    measured = tmp_path / "data/tiny/evaluation/forgetting.json"
    as_it_was = measured.read_text()
    measured.write_text(as_it_was.replace('"setup": "', '"setup": "other'))
    done = gate(tmp_path, "--suite", "critique")
    assert done.returncode == 2 and "--suite preference forgetting" in done.stderr
    measured.write_text(as_it_was)

    mark = {
        "critique_meaningful": None,
        "revision_better": "first",
        "note": "",
        "time": "2026-01-01T00:00:00Z",
    }
    jsonl.append(tmp_path / "data/tiny/review.jsonl", [{"id": pairs[0]["id"], **mark}])
    done = gate(tmp_path, "--suite", "critique")
    assert done.returncode == 2 and "review.jsonl has changed" in done.stderr
    done = gate(tmp_path, "--suite", "preference")
    assert done.returncode == 3, done.stderr
    assert "FAIL  a person finds revisions better" in done.stdout
    done = gate(tmp_path, "--suite", "preference", "--fresh")
    assert done.returncode == 2 and "add forgetting to --suite" in done.stderr
    assert (tmp_path / "data/tiny/evaluation").is_dir()
    path.write_text(json.dumps(manifest | {"adapter": "0" * 64}))
    done = gate(tmp_path, "--suite", "critique")
    assert done.returncode == 2 and "another adapter" in done.stderr
    done = gate(tmp_path, "--suite", "preference", "forgetting")
    assert done.returncode == 2 and "is not the adapter that run 'tiny' has recorded" in done.stderr
    (tmp_path / "data/tiny/evaluation/forgetting.json").unlink()
    done = gate(tmp_path, "--suite", "preference")
    assert done.returncode == 2 and "forgetting.json is missing" in done.stderr


def test_bad_input_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    done = evaluate(tmp_path, "--run", "nothing")
    assert done.returncode == 2 and "there is no run 'nothing'" in done.stderr
    assert not (tmp_path / "data").exists()
    make_run(tmp_path / "data/untrained", n=8)
    done = evaluate(tmp_path, "--run", "untrained")
    assert done.returncode == 2 and "train one first" in done.stderr
    done = evaluate(tmp_path, "--run", "untrained", "--limit", "0")
    assert done.returncode == 2 and "--limit 0: at least one example is needed" in done.stderr
    with open(tmp_path / "data/untrained/pairs.jsonl", "a") as f:
        f.write(
            '{"id": "x", "prompt": "p", "chosen": "c", "rejected": "r", "kind": "revision", "task": "t"}\n'
        )
    done = evaluate(tmp_path, "--run", "untrained", "--suite", "critique")
    assert done.returncode == 2 and "line 9: 'id' is no content hash, so 'held_out'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_reopened_with_its_settings_and_locked(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    make_run(tmp_path / "data/tiny", n=4)
    before = (tmp_path / "data/tiny/run.json").read_text()
    with Run.reopen("tiny") as run:
        assert run.settings["model"] == "sandbox"
        with pytest.raises(UserError, match="in use by another process"):
            Run.reopen("tiny")
    assert (tmp_path / "data/tiny/run.json").read_text() == before
    with pytest.raises(UserError, match="there is no run"):
        Run.reopen("other")


@pytest.mark.slow
def test_pairs_of_milestone_0_are_trained_on_and_the_printed_command_measures_them(tmp_path):
    data = tmp_path / "data/mine"
    data.mkdir(parents=True)
    shutil.copy(ROOT / "tests/data/bug-inputs/pairs-of-milestone-0.jsonl", data / "pairs.jsonl")
    done = script("train_dpo.py", "--run", "mine", "--model", "sandbox", "--steps", "2", output=tmp_path)
    assert done.returncode == 0, done.stderr
    command = re.search(r"python scripts/(evaluate.py) (.*)", done.stdout)
    done = script(command[1], *command[2].split(), output=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training revision pairs: accuracy" in done.stdout


def test_an_edited_configuration_and_edited_pairs_are_found_before_anything_is_loaded(evaluated, tmp_path):
    shutil.copytree(evaluated[1], tmp_path, dirs_exist_ok=True)
    config = tmp_path / "checkpoints/tiny/adapter_config.json"
    as_it_was = config.read_text()
    config.write_text(as_it_was.replace('"lora_alpha": 16', '"lora_alpha": 160'))
    assert config.read_text() != as_it_was
    done = evaluate(tmp_path, "--run", "tiny")
    assert done.returncode == 2 and "adapter_config.json is not the file that was saved" in done.stderr
    config.write_text(as_it_was)
    manifest = json.loads((tmp_path / "data/tiny/run.json").read_text())
    (tmp_path / "data/tiny/run.json").write_text(json.dumps(manifest | {"pairs": {"count": 61}}))
    done = evaluate(tmp_path, "--run", "tiny")
    assert done.returncode == 2 and "run 'tiny' wrote (61 pairs, now 60)" in done.stderr
    assert "model:" not in done.stdout and "Traceback" not in done.stderr
