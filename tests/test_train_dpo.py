"""scripts/train_dpo.py, whole, on the sandbox: killed and resumed; its table; what it says of bad input."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT, sha256_file
from cai.core.prompt_files import load_heldout
from cai.core.run import Run, read_manifest
from cai.core.schema import FORMAT, RECORD_KEYS
from cai.generation.pairs import keep_pairs
from cai.models.model import check_adapter
from cai.models.registry import REGISTRY
from pairs_of_facts import pairs_of_facts

SCRIPT = ROOT / "scripts/train_dpo.py"
SETTINGS = ("--model", "sandbox", "--steps", "6", "--every", "2")
MANIFEST = {
    "format": FORMAT,
    "run": "mine",
    "settings": {"seed": 7},
    "argv": ["generate"],
    "model": "sandbox",
}


def write_run(output, name="mine", rows=None, manifest=None):
    """A run's data as a generating script leaves them."""
    data = output / "data" / name
    data.mkdir(parents=True)
    rows = pairs_of_facts(12, held_out=8) if rows is None else rows
    (data / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if manifest:
        (data / "run.json").write_text(json.dumps(manifest))
    return data


def run(output, *args):
    return processes.script("train_dpo.py", "--run", "mine", *args, output=output)


def log_of(output):
    return [json.loads(x) for x in (output / "checkpoints/mine/training.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    write_run(output, manifest=MANIFEST)
    return run(output, *SETTINGS), output


def test_it_trains_and_ends_with_a_table(undisturbed):
    done, output = undisturbed
    assert done.returncode == 0, done.stderr
    text, here = done.stdout, output / "checkpoints/mine"
    assert "dpo+nll: 12 pairs, 8 held out, 6 steps" in text and "reference: the base model" in text
    table = [line for line in text.splitlines() if line.startswith(("train, ", "held out, "))]
    assert [line.split()[:4] for line in table] == [
        *(["train,", "before", "12", "0.6931"], table[1].split()[:4]),
        *(["held", "out,", "before", "8"], ["held", "out,", "after", "8"]),
    ]
    assert " to " in table[1] and " to " in table[3]  # intervals
    assert "next: look at" in text and "--suite preference --run mine" in text
    manifest = json.loads((output / "data/mine/run.json").read_text())
    assert manifest["argv"] == ["generate"] and manifest["settings"] == MANIFEST["settings"]  # the data's own
    assert manifest["adapter"] == check_adapter(here, REGISTRY["sandbox"])["sha256"]
    assert manifest["training"]["after"]["train"]["margin"] > 0 and manifest["training"]["steps"] == 6
    assert not (here / "steps").exists() and (here / "curves.png").is_file()
    steps = {r["step"] for r in map(json.loads, (output / "logs/ledger.jsonl").read_text().splitlines())}
    assert steps == {"loading", "training"}


def test_killed_and_resumed_it_ends_with_the_same_adapter(undisturbed, tmp_path):
    """SIGKILL when step 4 has been measured; its checkpoint is left half-written, that of step 2 is whole."""
    write_run(tmp_path, manifest=MANIFEST)
    processes.kill_at("step    4 of 6", "train_dpo.py", "--run", "mine", *SETTINGS, output=tmp_path)
    steps = tmp_path / "checkpoints/mine/steps"
    assert (steps / "checkpoint-2/complete.json").is_file()
    (steps / "checkpoint-4").mkdir(exist_ok=True)
    (steps / "checkpoint-4/complete.json").unlink(missing_ok=True)
    (steps / "checkpoint-4/adapter_model.safetensors").write_bytes(b"half")
    done = run(tmp_path, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert "goes on from the checkpoint of step 2 of 6" in done.stdout
    _, output = undisturbed
    assert log_of(tmp_path) == log_of(output)  # each step once, and with the same numbers
    files = [o / "checkpoints/mine/adapter_model.safetensors" for o in (tmp_path, output)]
    assert files[0].read_bytes() == files[1].read_bytes()
    hashes = {check_adapter(file.parent, REGISTRY["sandbox"])["sha256"] for file in files}
    assert len(hashes) == 1  # of all its files


def test_again_other_settings_and_fresh(undisturbed, tmp_path):
    import shutil

    shutil.copytree(undisturbed[1], tmp_path, dirs_exist_ok=True)
    again = run(tmp_path, *SETTINGS)
    assert again.returncode == 0 and "done earlier (finished)" in again.stdout
    other = run(tmp_path, *SETTINGS, "--beta", "0.2")
    assert other.returncode == 2 and "beta was 0.3, now 0.2" in other.stderr
    assert other.stderr.count("error: ") == 1 and "Traceback" not in other.stderr


@pytest.mark.slow
def test_fresh_moves_the_checkpoint_and_leaves_the_data(undisturbed, tmp_path):
    import shutil

    shutil.copytree(undisturbed[1], tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "data/mine/pairs.jsonl").read_bytes()
    done = run(tmp_path, "--model", "sandbox", "--steps", "2", "--fresh")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints/mine~1/adapter_model.safetensors").is_file()
    assert (tmp_path / "data/mine/pairs.jsonl").read_bytes() == before
    assert not (tmp_path / "data/mine~1").exists()


@pytest.mark.slow
def test_going_on_from_another_runs_adapter_in_four_bits(undisturbed, tmp_path):
    import shutil

    shutil.copytree(undisturbed[1], tmp_path, dirs_exist_ok=True)
    more = ("--run", "on", "--data", "mine", "--from", "mine", "--steps", "3", "--bits", "4", "--loss", "dpo")
    done = run(tmp_path, *more)
    assert done.returncode == 0, done.stderr
    assert "reference: the adapter of mine" in done.stdout
    first = json.loads((tmp_path / "checkpoints/on/training.jsonl").read_text().splitlines()[1])
    assert first["step"] == 1 and first["loss"] == pytest.approx(0.6931, abs=0.02)


# ---- bad input: found before anything heavy is loaded ----


def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("train_dpo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def says(monkeypatch, output, *args):
    """The sentence that the script ends with."""
    monkeypatch.setenv("CAI_OUTPUT", str(output))
    monkeypatch.setattr(sys, "argv", ["train_dpo.py", "--run", "mine", "--model", "sandbox", *args])
    with pytest.raises(UserError) as caught:
        script().main()
    return str(caught.value)


def test_pairs_whose_revision_a_person_finds_no_better_are_left_out(tmp_path, monkeypatch):
    rows = pairs_of_facts(4, held_out=2)
    rows[3]["kind"] = "anchor"
    data = write_run(tmp_path, rows=rows)
    record = {k: (kind[0] if isinstance(kind, tuple) else kind)() for k, kind in RECORD_KEYS.items()}
    ids = [r["id"] for r in rows]
    done = [record | {"id": i, "instruction": i, "revised_answer": "x"} for i in ids]
    monkeypatch.setattr("cai.evaluation.marks.read_records", lambda directory: done)
    mark = {"critique_meaningful": None, "note": "", "time": "2026-01-01T00:00:00Z"}
    said = {ids[0]: "first", ids[1]: "revision", ids[2]: "tie", ids[3]: "first", ids[4]: "tie"}
    marks = [mark | {"id": i, "revision_better": better} for i, better in said.items()]
    (data / "review.jsonl").write_text("".join(json.dumps(m) + "\n" for m in marks))
    agreed = script().agreed
    pairs, held_out, left_out = agreed(data)
    assert [p["id"] for p in pairs] == [ids[1], ids[3]] and [p["id"] for p in held_out] == ids[5:]
    assert left_out == 3
    (data / "pairs.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="prefers the first answer, or neither, in every pair"):
        agreed(data)


@pytest.mark.parametrize(("args", "said"), [
    (["--steps", "0"], "--steps 0: at least one step is needed"),
    (["--epochs", "0"], "--epochs 0.0: must be above 0"),
    (["--steps", "1", "--epochs", "1"], "--epochs 1.0 is not allowed with --steps 1"),
    (["--lr", "-1"], "--lr -1.0: must be above 0"),
    (["--lr", "nan"], "--lr nan: must be above 0"),
    (["--beta", "0"], "--beta 0.0: must be above 0"),
    (["--lora-r", "0"], "--lora-r 0: must be at least 1"),
    (["--every", "0"], "--every 0: must be at least 1"),
    (["--set", "loss=orpo"], "--set 'loss=orpo': write name=value, with one of these names"),
    (["--set", "warmup=2"], "warmup=2: a share, at most 1"),
    (["--set", "learning_rate=1e-4", "--lr", "1e-4"], "learning_rate is set twice"),
    (["--from", "mine"], "--run itself"),
    (["--from", "nobody"], "holds no adapter of ours"),
    (["--data", "nothing"], "pairs.jsonl is missing"),
    (["--model", "nonsense"], "neither in the registry"),
])  # fmt: skip
def test_bad_flags_are_one_sentence(args, said, monkeypatch, tmp_path):
    write_run(tmp_path)
    assert said in says(monkeypatch, tmp_path, *args)


@pytest.mark.parametrize(("args", "made", "bits"), [
    ([], {"model": "sandbox", "bits": 4}, (4, "in which it made the pairs of mine")),
    (["--bits", "16"], {"model": "sandbox", "bits": 4}, (16, "asked for by --bits")),
    ([], {"model": "another", "bits": 4}, (16, "the model's own")),
    ([], {"model": "sandbox", "bits": None}, (16, "the model's own")),
])  # fmt: skip
def test_the_precision_is_that_of_the_data(args, made, bits, monkeypatch, tmp_path):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    manifest = MANIFEST | {"model": made["model"], "settings": {"seed": 7, "bits": made["bits"]}}
    write_run(tmp_path, manifest=manifest)
    monkeypatch.setattr(sys, "argv", ["train_dpo.py", "--model", "sandbox", *args])
    module = script()
    assert module.bits_of(module.read_flags(), REGISTRY["sandbox"], "mine") == bits


def test_a_forecast_says_what_it_takes_and_leaves_nothing_behind(monkeypatch, tmp_path, capsys):
    write_run(tmp_path, manifest=MANIFEST)
    there = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train_dpo.py", "--run", "mine", "--steps", "6", "--forecast"])
    assert script().main() == 0
    said = capsys.readouterr().out
    assert said.startswith("forecast for 12 pairs: sandbox in 16 bits on") and "6 steps" in said
    assert "assumed" in said and "loading" in said and "all " in said
    assert sorted(tmp_path.rglob("*")) == there


def test_a_dear_training_asks_for_a_budget_and_a_small_budget_stops_before_loading(monkeypatch, tmp_path):
    write_run(tmp_path, manifest=MANIFEST)
    assert "above the $150 that a command may cost" in says(monkeypatch, tmp_path, "--hourly-rate", "1e7")
    assert not (tmp_path / "checkpoints").exists()
    done = run(tmp_path, *SETTINGS, "--hourly-rate", "3600", "--budget", "0.01")
    assert done.returncode == 4 and "budget: loading would cost about" in done.stderr, done.stderr
    assert not (tmp_path / "checkpoints").exists()


def written_run(output, rows):
    """A run whose pairs the pipeline has written."""
    with Run.open("mine", {}) as made:
        keep_pairs(made, rows)
    return made.data / "pairs.jsonl"


def test_pairs_that_were_edited_are_refused_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    rows = pairs_of_facts(4)
    path = written_run(tmp_path, rows)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows[1:]))
    monkeypatch.setattr("cai.models.session.load_engine", lambda *args: pytest.fail("it was loaded"))
    for more in ((), ("--run", "other", "--data", "mine")):
        said = says(monkeypatch, tmp_path, *more)
        assert "is not the one that run 'mine' wrote (4 pairs, now 3)" in said and "--edited-pairs" in said


def test_edited_pairs_are_taken_on_purpose_and_the_run_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    rows = pairs_of_facts(4)
    path = written_run(tmp_path, rows)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows[1:]))
    seen = {}

    def train(model, pairs, held_out, *args, pairs_file, **more):
        seen.update(pairs=pairs, file=pairs_file)
        return SimpleNamespace(taken=1, status="finished", adapter="x", table=str)

    monkeypatch.setattr("cai.models.session.load_engine", lambda *args: (None, None))
    monkeypatch.setattr("cai.training.dpo.train", train)
    monkeypatch.setattr(sys, "argv", ["train_dpo.py", "--run", "mine", "--edited-pairs", "--steps", "1"])
    module = script()
    monkeypatch.setattr(module, "asdict", lambda found: {})
    assert module.main() == 0
    assert seen == {"pairs": rows[1:], "file": sha256_file(path)}
    found = read_manifest("mine")["training"]
    assert found["edited_pairs"] is True and found["pairs_file"] == sha256_file(path)
    assert "is taken as it is (--edited-pairs)" in capsys.readouterr().out


def test_pairs_on_evaluation_prompts_are_left_out_and_counted(tmp_path, monkeypatch):
    asked = [p.instruction for p in load_heldout(Path(REGISTRY["sandbox"].heldout))]
    apart, rows = script().apart_from_evaluation, pairs_of_facts(3)
    bad = rows[0] | {"prompt": f"Answer this: {asked[0]}"}
    assert apart([bad, *rows[1:]], REGISTRY["sandbox"]) == (rows[1:], 1)
    with pytest.raises(UserError, match="all 1 pairs have prompts that models are evaluated on"):
        apart([bad], REGISTRY["sandbox"])


@pytest.mark.parametrize("args", [["--run", "a" * 260], ["--data", "../x"], ["--from", "a b"]])
def test_names_of_runs_are_checked_before_anything_is_read(args, monkeypatch, tmp_path):
    said = says(monkeypatch, tmp_path, *args)
    assert "use letters, digits" in said or "a name has at most 100 letters" in said
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed_names_the_command(monkeypatch, tmp_path):
    write_run(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install trackio" in says(monkeypatch, tmp_path, "--tracker", "trackio")


def test_an_adapter_of_another_base_is_refused(monkeypatch, tmp_path):
    write_run(tmp_path)
    other = tmp_path / "checkpoints/other"
    other.mkdir(parents=True)
    (other / "adapter_model.safetensors").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (other / "base.json").write_text(json.dumps({"model": "Qwen/Qwen2.5-7B", "bits": 16, "sha256": empty}))
    said = says(monkeypatch, tmp_path, "--from", "other")
    assert "belongs to Qwen/Qwen2.5-7B" in said and "not to sandbox" in said


@pytest.mark.parametrize(("flag", "value", "known"), [
    ("--loss", "ppo", ("dpo", "dpo+nll", "orpo")),
    ("--tracker", "diary", ("none", "trackio", "wandb", "tensorboard")),
])  # fmt: skip
def test_what_a_registry_does_not_hold_is_no_choice(flag, value, known, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_dpo.py", flag, value])
    with pytest.raises(SystemExit) as ended:
        script().main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"invalid choice: '{value}'" in said and all(k in said for k in known)


def settings(monkeypatch, *args, pairs=100):
    """What the script makes of its flags."""
    monkeypatch.setattr(sys, "argv", ["train_dpo.py", "--model", "sandbox", *args])
    module = script()
    found = module.read_flags()
    return module.settings_of(found, module.model_of(found, "mine")[0], pairs, None)


def test_flags_are_short_for_values_of_the_registry(monkeypatch, tmp_path):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    plain = settings(monkeypatch)
    assert (plain.loss, plain.learning_rate, plain.warmup, plain.steps) == ("dpo+nll", 5e-4, 0.1, 100)
    short = settings(monkeypatch, "--lr", "1e-6", "--beta", "0.2", "--loss", "orpo", "--lora-r", "8")
    long = ("learning_rate=1e-6", "beta=0.2", "lora_r=8", "lora_alpha=8")
    assert short == settings(monkeypatch, "--loss", "orpo", "--set", *long)
    assert short.loss == "orpo" and (short.learning_rate, short.lora_alpha) == (
        1e-6,
        8,
    )  # alpha keeps its ratio
    both = settings(monkeypatch, "--lora-r", "8", "--set", "lora_alpha=64")
    assert (both.lora_r, both.lora_alpha) == (8, 64)


@pytest.mark.parametrize(("args", "steps"), [
    (["--set", "passes=10"], 125), (["--epochs", "4"], 50), (["--epochs", "0.5"], 7), (["--steps", "3"], 3)
])  # fmt: skip
def test_steps_come_from_a_flag_or_from_the_passes(args, steps, monkeypatch, tmp_path):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    assert settings(monkeypatch, *args).steps == steps


def test_the_rank_is_that_of_the_adapter_that_training_goes_on_from(monkeypatch, tmp_path):
    monkeypatch.setattr("cai.models.model.check_adapter", lambda *args: None)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16}))
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    module = script()

    def made(*args):
        monkeypatch.setattr(sys, "argv", ["train_dpo.py", "--model", "sandbox", "--from", "other", *args])
        found = module.read_flags()
        return module.settings_of(found, module.model_of(found, "mine")[0], 10, tmp_path)

    assert (made().lora_r, made().lora_alpha) == (8, 16)
    assert made("--lora-r", "8", "--set", "lora_alpha=16").lora_r == 8
    with pytest.raises(
        UserError, match="LoRA rank 4, alpha 4: the adapter of --from other has rank 8, alpha 16"
    ):
        made("--lora-r", "4")
    with pytest.raises(UserError, match="has rank 8, alpha 16"):
        made("--set", "lora_alpha=64")
