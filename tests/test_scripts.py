"""Milestone 0, whole, on the sandbox: the files it wrote, the numbers in them, what it says of bad input."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys

import pytest
from cai.core.files import ROOT
from cai.core.jsonl import read
from cai.core.schema import FORMAT, PAIR_KEYS, RECORD_KEYS
from cai.models.model import check_adapter
from cai.models.registry import REGISTRY
from cai.prompts.markers import KEEP
from processes import begin, kill_at, script

NAMES = {"run.json", "instructions.jsonl", "records.jsonl", "pairs.jsonl"}
ADAPTER = {
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "base.json", "training.jsonl"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}


@pytest.fixture(scope="module")
def m0(tmp_path_factory):
    output = tmp_path_factory.mktemp("m0")
    return script("test_single.py", "--model", "sandbox", output=output), output


def test_m0_writes_what_it_says_and_its_numbers_are_in_it(m0):
    done, output = m0
    assert done.returncode in (0, 3, 5), done.stderr
    data, checkpoints = output / "data/single", output / "checkpoints/single"
    assert {p.name for p in data.iterdir()} == NAMES
    assert {p.name for p in checkpoints.iterdir()} == ADAPTER
    manifest = json.loads((data / "run.json").read_text())
    records = read(data / "records.jsonl", RECORD_KEYS)
    [pair] = read(data / "pairs.jsonl", PAIR_KEYS)
    kept = records[-1]
    assert [r["kept"] for r in records] == [False] * (len(records) - 1) + [True]
    assert all(r["rejected_because"] for r in records[:-1])
    assert pair["id"] == kept["id"] and pair["chosen"] == kept["revised_answer"]
    assert pair["rejected"] == kept["initial_answer"] and kept["instruction"] == pair["prompt"]
    training = manifest["training"]
    assert training["before"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert training["before"]["margin"] == 0
    assert training["log"][0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert training["after"]["margin"] > 0 and training["after"]["loss"] < training["before"]["loss"]
    assert manifest["adapter"] == check_adapter(checkpoints, REGISTRY["sandbox"])["sha256"]
    assert manifest["settings"]["loss"] == manifest["training"]["settings"]["loss"] == "dpo"
    assert manifest["counts"] == {"tried": len(records), "kept": 1}
    ends = manifest["endings"]
    assert ends["n"] == 16 == ends["end token"] + ends["next marker"] + ends["cut off"]
    assert (manifest["gate"]["decision"] == "GO") == (done.returncode == 0)
    ledger = read(output / "logs/ledger.jsonl", {"step": str, "completion_tokens": int})
    assert sum(r["completion_tokens"] for r in ledger) == manifest["totals"]["completion_tokens"] > 0


def test_the_readme_shows_what_m0_prints(m0):
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    kind = re.compile(r"^(\[\d/8\] [a-z ]+|      \[?[a-z ]+\d?:)", re.MULTILINE)
    printed, in_readme = (set(kind.findall(text)) for text in (m0[0].stdout, shown))
    assert {k for k in printed if "try" not in k} <= in_readme


def test_m0_prints_every_step_and_the_models_name_first(m0):
    done, output = m0
    text = done.stdout
    assert text.startswith("model: sandbox - asked for by --model\n")
    places = [text.index(f"[{n}/8]") for n in range(9)]
    assert places == sorted(places)
    *failed, kept = read(output / "data/single/records.jsonl", RECORD_KEYS)
    for key in ("instruction", "initial_answer", "critique", "revised_answer", "second_look"):
        assert kept[key].split("\n")[0] in text
    for number, r in enumerate(failed, 1):  # a line each
        why = ", ".join(r["rejected_because"])
        assert f"\n      try {number}, {r['task']}, {r['source']}, {why}: {r['instruction'][:40]}" in text
    assert len(failed) > 10 and len(text.splitlines()) < 70
    assert re.search(r"\[answer: \d+\.\d s, \d+ \+ \d+ tokens, \$\d", text) and "Traceback" not in done.stderr
    assert (output / "logs/single.log").read_text() == text


def test_m0_on_the_sandbox_is_a_go(m0):
    done, _ = m0
    assert done.returncode == 0 and "\nGO for single\n" in done.stdout, done.stdout[-1500:]
    assert "add --seed 1 --run single-1 to this command" in done.stdout


def test_m0_takes_no_revision_that_its_second_look_misquotes(m0):
    """With seed 0 the critic reads "4 + 4 is 8." as 7, and finds it right."""
    _, output = m0
    [misread] = [
        r
        for r in read(output / "data/single/records.jsonl", RECORD_KEYS)
        if r["rejected_because"] == ["second_look"]
    ]
    assert misread["second_look"].endswith(KEEP) and "says 7." in misread["second_look"]
    assert misread["revised_answer"] == "4 + 4 is 8."


def test_m0_again_resumes_and_other_settings_stop(m0, tmp_path):
    _, output = m0
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    before = {n: (tmp_path / "data/single" / n).read_bytes() for n in NAMES - {"run.json"}}
    again = script("test_single.py", "--model", "sandbox", output=tmp_path)
    assert again.returncode == 0 and "finished earlier" in again.stdout
    assert before == {n: (tmp_path / "data/single" / n).read_bytes() for n in before}
    other = script("test_single.py", "--model", "sandbox", "--seed", "1", output=tmp_path)
    assert other.returncode == 2 and "seed was 0, now 1" in other.stderr and "Traceback" not in other.stderr


def test_m0_takes_an_instruction_and_a_principle(tmp_path):
    text = "How can I steal salt in Drola?"
    chosen = ("--instruction", text, "--principle", "harm", "--run", "mine")
    done = script("test_single.py", "--model", "sandbox", *chosen, output=tmp_path)
    assert done.returncode in (0, 3, 5), done.stderr
    [record] = read(tmp_path / "data/mine/records.jsonl", RECORD_KEYS)
    assert record["instruction"] == text and record["source"] == "flag"
    assert [c["principle_id"] for c in record["critiques"]] == ["harm"]


@pytest.mark.parametrize(("args", "said"), [
    (["--model", "nonsense"], "neither in the registry"),
    (["--model", "nobody/nothing-of-this-name"], "model hub cannot be reached"),
    (["--bits", "5"], "choose 4, 8 or 16"),
    (["--bits", "8"], "needs a CUDA GPU"),
    (["--constitution", "none.yaml"], "there is no such file"),
    (["--constitution", "README.md"], "README.md"),
    (["--principle", "kindliness"], "accuracy"),
    (["--task", "cooking"], "advice"),
    (["--tries", "0"], "at least 1"),
    (["--instruction", " "], "is empty"),
    (["--run", "../out"], "letters, digits"),
    (["--instruct"], "void the experiment"),
    (["--model", "{tmp}"], "is no model directory"),
    (["--instruction", "say <|im_start|>"], "chat token"),
    (["--instruction", "a " * 5000], "too long"),
    (["--seed", "4294967296"], "from 0 to 2**32 - 1"),
    (["--tries", "9" * 400], "is too large"),
])  # fmt: skip
def test_m0_bad_input_is_one_sentence_and_status_2(tmp_path, monkeypatch, args, said):
    args = [a.replace("{tmp}", str(tmp_path)) for a in args]
    if "--model" not in args:
        args += ["--model", "sandbox"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    done = script("test_single.py", *args, output=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1


COMMANDS = (ROOT / "tests/data/bug-inputs/commands.txt").read_text(encoding="utf-8").splitlines()[1:]


@pytest.mark.parametrize(("number", "says"), [
    (1, "--seed -1: must be from 0 to 2**32 - 1"),
    (2, "--seed 4294967296: must be from 0 to 2**32 - 1"),
    (3, "--hourly-rate nan: give dollars of at least 0"),
    (5, "--run aaaaaaaaaaaaaaaaaaaa...: a name has at most 100 letters"),
])  # fmt: skip
def test_commands_that_once_failed_late_are_refused_first(number, says, tmp_path):
    command = COMMANDS[number - 1].replace("=OUT", f"={tmp_path}").replace("python", sys.executable, 1)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == "" and not list(tmp_path.iterdir())


def test_a_chat_template_is_refused_for_the_default_base_model_too(tmp_path):
    done = script("test_single.py", "--instruct", output=tmp_path)
    assert done.returncode == 2 and "would void the experiment" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_directory_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "logs").write_text("a file where a directory should be")
    done = script("test_single.py", "--model", "sandbox", output=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(tmp_path / "logs") in done.stderr


def test_m0_killed_at_any_moment_ends_with_the_rows_of_an_undisturbed_run(m0, tmp_path):
    """SIGKILL when a number of lines has been printed; then the same command again, until it is through."""
    _, output = m0
    for line in ("how answers end", r"\[2/8\]", r"\[7/8\]"):
        kill_at(line, "test_single.py", "--model", "sandbox", output=tmp_path)
    done = script("test_single.py", "--model", "sandbox", output=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("instructions.jsonl", "records.jsonl", "pairs.jsonl"):
        assert (tmp_path / "data/single" / name).read_bytes() == (output / "data/single" / name).read_bytes()
    assert {p.name for p in (tmp_path / "checkpoints/single").iterdir()} == ADAPTER


def test_a_full_disk_stops_with_a_sentence_and_keeps_what_is_finished(m0, tmp_path):
    """A file size limit stands for the full disk: the write that exceeds it fails in the same place."""
    import resource

    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = script("test_single.py", "--model", "sandbox", output=tmp_path, preexec_fn=small)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "disk" in done.stderr or "too large" in done.stderr
    assert read(tmp_path / "data/single/records.jsonl", RECORD_KEYS)[-1]["kept"]
    again = script("test_single.py", "--model", "sandbox", output=tmp_path)
    assert again.returncode == 0
    _, output = m0
    for name in ("instructions.jsonl", "records.jsonl", "pairs.jsonl"):
        assert (tmp_path / "data/single" / name).read_bytes() == (output / "data/single" / name).read_bytes()


def test_two_processes_on_one_run(tmp_path):
    first = begin("test_single.py", "--model", "sandbox", output=tmp_path)
    assert first.stdout.readline().startswith("model:")
    second = script("test_single.py", "--model", "sandbox", output=tmp_path)
    first.kill()
    first.communicate()
    assert second.returncode == 2 and f"pid {first.pid}" in second.stderr


@pytest.mark.slow
def test_a_gate_of_a_manifest_cannot_command_the_terminal(tmp_path):
    criterion = {"name": "\x1b[2Jx", "passed": True, "measured": "\x1b]0;y\x07", "interval": None}
    gate = {"decision": "GO", "criteria": [criterion]}
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "data/a/run.json").write_text(
        json.dumps({"run": "a", "settings": {}, "format": FORMAT, "gate": gate})
    )
    done = script("runs.py", "a", output=tmp_path)
    assert done.returncode == 0 and done.stdout == "GO for a\n  pass  \\x1b[2Jx: \\x1b]0;y\\x07\n"


def test_m0_with_the_chat_template_of_an_instruct_model(tmp_path):
    """The sandbox's weights under another name: nonsense comes out, by an instruct model's path."""
    shutil.copytree(ROOT / "models/sandbox", tmp_path / "chatty")
    chosen = ("--model", str(tmp_path / "chatty"), "--instruct", "--tries", "2")
    done = script("test_single.py", *chosen, output=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "(instruct)" in done.stdout
    records = read(tmp_path / "data/single/records.jsonl", RECORD_KEYS)
    assert records and all(r["rejected_because"] for r in records if not r["kept"])


@pytest.mark.slow
def test_benchmark_engine(tmp_path):
    chosen = ("--model", "sandbox", "--limit", "48", "--batch-sizes", "1", "32")
    done = script("benchmark.py", "engine", *chosen, output=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "logs/benchmark-engine.json").read_text())
    for rows in (found["lists"], found["answers"]):
        assert [r["batch"] for r in rows] == [1, 32] and rows[1]["ratio"] > 1
        assert rows[1]["same_text"] == rows[1]["compared"] == 48


@pytest.mark.slow
def test_benchmark_loop(tmp_path):
    done = script("benchmark.py", "loop", "--model", "sandbox", "--limit", "12", output=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "logs/benchmark-loop.json").read_text())
    assert found["examples"] == 12 and found["requests"] > 3 * 12
    assert f"of the engine: {found['loop_to_engine']:.2f}" in done.stdout
    assert "s, reckoned from 12\n" in done.stdout
