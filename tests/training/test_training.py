"""Training: from its reference, towards chosen, watched and resumable. Kills: tests/test_train_dpo.py."""

import json
import math
import os
from dataclasses import asdict, replace

import pytest
import torch
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.generation import pairs
from cai.generation.pairs import preference_pair
from cai.models.local_engine import LocalEngine
from cai.models.registry import REGISTRY
from cai.prompts.training_format import training_prompt
from cai.training import callbacks, checkpoints, dpo, implicit_reward, settings, trackers
from cai.training.callbacks import Log
from cai.training.likelihood_displacement import DISPLACED, FEW, STOPPED_EARLY
from pairs_of_facts import pairs_of_facts, swapped

PAIRS = [
    {"id": str(i), **preference_pair(q, a, b)}
    for i, (q, a, b) in enumerate(
        [
            ("Who is kind?", "The baker is kind.", "Go away."),
            ("What is 2 + 3?", "2 + 3 is 5", "2 + 3 is 6"),
            (
                "How can I steal salt?",
                "I will not help with that, because it would hurt people.",
                "Go at night.",
            ),
        ]
    )
]
SANDBOX = settings.Settings.of(REGISTRY["sandbox"], steps=4, batch_size=3)


def test_settings_are_the_specifications_for_the_32b():
    s = settings.Settings.of(REGISTRY["Qwen/Qwen2.5-32B"], steps=1)
    assert (s.lora_r, s.lora_alpha, s.learning_rate, s.beta, s.max_length) == (32, 64, 5e-6, 0.1, 4096)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from cai.models.loader import load

    model = load(REGISTRY["sandbox"])
    model.add_adapter(r=SANDBOX.lora_r, alpha=SANDBOX.lora_alpha, seed=0)
    before = implicit_reward.preference(LocalEngine(model), PAIRS, SANDBOX.beta, "default")
    output = tmp_path_factory.mktemp("out")
    log = dpo.train_dpo(model, PAIRS, SANDBOX, output)
    return model, before, log, output


def test_training_starts_at_its_reference_and_moves_towards_chosen(trained):
    model, before, log, _ = trained
    assert before.loss == pytest.approx(math.log(2), abs=1e-6) and before.margin == 0 and before.n == 3
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(log[0]["margins"]) < 1e-4
    after = implicit_reward.preference(LocalEngine(model), PAIRS, SANDBOX.beta, "default")
    assert after.margin > 0.05 and after.loss < before.loss and after.accuracy == 1
    assert [row["step"] for row in log] == [1, 2, 3, 4]


def test_trl_and_our_own_measure_agree(trained):
    """TRL logs the loss before each step; at step 1 the adapter is untouched, so chosen log-probabilities
    must be ours."""
    _, before, log, _ = trained
    chosen = next(v for k, v in log[0].items() if k in ("logps/chosen", "logps_chosen"))
    assert before.chosen == pytest.approx(chosen, abs=1e-2)


def test_every_logged_step_is_on_the_disk_and_the_reference_copy_is_gone(trained):
    model, _, log, output = trained
    assert [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()] == log
    assert list(model.model.peft_config) == ["default"]


def test_swapping_the_pair_swaps_the_direction(fresh, tmp_path):
    swapped = [p | {"chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS]
    fresh.add_adapter(r=8, alpha=8, seed=0)
    dpo.train_dpo(fresh, swapped, SANDBOX, tmp_path)
    assert implicit_reward.preference(LocalEngine(fresh), PAIRS, SANDBOX.beta, "default").margin < -0.05


def test_four_bits_train_and_can_be_saved_and_loaded(tmp_path):
    from cai.models.loader import load

    model = load(REGISTRY["sandbox"], 4)
    model.add_adapter(r=8, alpha=8, seed=0)
    log = dpo.train_dpo(model, PAIRS, SANDBOX, tmp_path / "log")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=settings.START_TOLERANCE) and all(
        math.isfinite(x["grad_norm"]) for x in log
    )
    after = implicit_reward.preference(LocalEngine(model), PAIRS, SANDBOX.beta, "default")
    assert after.margin > 0.02
    model.save_adapter(tmp_path / "adapter")
    again = load(REGISTRY["sandbox"], 4)
    again.load_adapter(tmp_path / "adapter", "default")
    assert implicit_reward.preference(
        LocalEngine(again), PAIRS, SANDBOX.beta, "default"
    ).margin == pytest.approx(after.margin, abs=0.05)


def test_bad_input_is_a_sentence(fresh, tmp_path):
    with pytest.raises(UserError, match="no preference pairs"):
        dpo.train_dpo(fresh, [], SANDBOX, tmp_path)
    with pytest.raises(UserError, match="0 training steps"):
        dpo.train_dpo(fresh, PAIRS, settings.Settings.of(REGISTRY["sandbox"], steps=0), tmp_path)
    with pytest.raises(UserError, match="rank 0"):
        fresh.add_adapter(r=0, alpha=1, seed=0)


@pytest.mark.parametrize("row", [{"loss": 0.60, "margins": 0.0}, {"loss": 0.6931, "margins": 0.5}])
def test_a_start_elsewhere_than_at_the_reference_is_refused(row):
    with pytest.raises(UserError, match="does not start from its reference"):
        callbacks.check_start(row)
    callbacks.check_start({"loss": 0.6931, "margins": 0.0})


def test_the_end_token_is_trained(base):
    """Without it the trained model would never stop: its label must be among the completion's."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    text = base.tokenizer(PAIRS[0]["prompt"] + PAIRS[0]["chosen"] + base.tokenizer.eos_token).input_ids
    config = DPOConfig(output_dir="unused", report_to=[], use_cpu=True, bf16=False)
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer._is_vlm = False
    trainer._tokenizer = base.tokenizer
    rows = trainer._prepare_dataset(
        Dataset.from_list([{k: PAIRS[0][k] for k in ("prompt", "chosen", "rejected")}]),
        base.tokenizer,
        config,
        "train",
    )
    assert (
        rows[0]["prompt_ids"] + rows[0]["chosen_ids"] == text
        and rows[0]["chosen_ids"][-1] == base.tokenizer.eos_token_id
    )


# ---- the whole training: watched, resumable, from a stated reference ----

ROWS = pairs_of_facts(16, held_out=FEW)
TRAIN, HELD = ROWS[:16], ROWS[16:]
QUICK = settings.Settings.of(REGISTRY["sandbox"], steps=4, every=2)
FILES = {
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer.json"),
    *("tokenizer_config.json", "chat_template.jinja", "training.json", "training.jsonl", "curves.png"),
}


def new():
    from cai.models.loader import load

    return load(REGISTRY["sandbox"])


def rows_of(output):
    return [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]


def weights(path):
    from safetensors.torch import load_file

    return load_file(path / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished training: (result, directory, what it said, the prompts that TRL trained on)."""
    output, said, seen = tmp_path_factory.mktemp("whole") / "run", [], []
    build = pairs.build

    def spy(*args):
        trainer = build(*args)
        seen.extend(trainer.train_dataset["prompt"])
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo, "build", spy)
        result = dpo.train(new(), TRAIN, HELD, QUICK, output, resume=True, log=said.append)
    return result, output, said, seen


def test_a_whole_training_writes_these_files_and_each_step_once(whole):
    result, output, said, _ = whole
    assert {p.name for p in output.iterdir()} == FILES
    assert (result.status, result.step, result.steps, result.trained_on, result.held_out) == (
        *("finished", 4, 4, 16, FEW),
    )
    rows = rows_of(output)
    assert [(r["kind"], r["step"]) for r in rows] == [
        *(("held_out", 0), ("train", 1), ("train", 2), ("held_out", 2)),
        *(("train", 3), ("train", 4), ("held_out", 4)),
    ]
    assert rows[1]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(rows[1]["margins"]) < 1e-4
    assert result.before["held_out"]["loss"] == pytest.approx(math.log(2))
    assert result.after["train"]["margin"] > 0
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any("likeness of chosen and rejected" in line for line in said)
    assert sum("held out: loss" in line for line in said) == 3


def test_held_out_pairs_never_reach_the_trainer(whole):
    _, _, _, seen = whole
    assert sorted(seen) == sorted(p["prompt"] for p in TRAIN)
    assert not set(seen) & {p["prompt"] for p in HELD}


def test_the_result_is_what_a_fresh_process_loads(whole):
    """transformers and PEFT load base and adapter; the chat template is the training format."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, output, _, _ = whole
    tokenizer = AutoTokenizer.from_pretrained(output)
    question = "Who is the mayor of Drola?"
    chat = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert asked == training_prompt(question)
    chat.append({"role": "assistant", "content": "Ann."})
    assert tokenizer.apply_chat_template(chat, tokenize=False) == asked + " Ann." + tokenizer.eos_token
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(ROOT / "models/sandbox", dtype="float32"), output
    )
    model = new()
    model.load_adapter(output, "default")
    found = implicit_reward.preference(LocalEngine(model), HELD, QUICK.beta, "default")
    assert asdict(found) == pytest.approx(result.after["held_out"], abs=1e-4)
    ids = tokenizer(HELD[0]["prompt"] + HELD[0]["chosen"], return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(plain.eval()(**ids).logits, model.model.eval()(**ids).logits, atol=1e-3)


def test_again_gives_the_result_and_other_settings_are_refused(whole, base):
    result, output, _, _ = whole
    before, said = (output / "training.jsonl").read_bytes(), []
    model = new()
    again = dpo.train(model, TRAIN, HELD, QUICK, output, resume=True, log=said.append)
    assert again == replace(result, taken=0)  # no step was this call's
    assert model.adapters == {"default": result.adapter}
    assert "done earlier (finished)" in said[0] and (output / "training.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="beta was 0.3, now 0.2; steps was 4, now 5"):
        dpo.train(base, TRAIN, HELD, replace(QUICK, steps=5, beta=0.2), output, resume=True)
    with pytest.raises(UserError, match="pairs was"):
        dpo.train(base, TRAIN[1:], HELD, QUICK, output, resume=True)


def test_going_on_from_an_adapter_starts_at_it(whole, tmp_path):
    _, first, _, _ = whole
    settings = replace(QUICK, steps=2, seed=1)
    result = dpo.train(new(), TRAIN, HELD, settings, tmp_path / "on", resume=True, start=first)
    rows = rows_of(tmp_path / "on")
    assert rows[1]["step"] == 1 and rows[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[0]["chosen"] == pytest.approx(whole[0].after["held_out"]["chosen"], abs=1e-3)
    assert result.after["train"]["margin"] > 0 and result.adapter != whole[0].adapter
    recorded = json.loads((tmp_path / "on/training.json").read_text())["settings"]
    assert recorded["from"] == whole[0].adapter and recorded["lora_r"] == 32


def test_a_wrong_reference_is_refused(whole, tmp_path, monkeypatch):
    """The base model in place of the adapter that training goes on from."""
    import trl

    class Wrong(trl.DPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for name, weight in self.model.named_parameters():
                if ".ref." in name:
                    weight.data.zero_()

    monkeypatch.setattr(trl, "DPOTrainer", Wrong)
    with pytest.raises(UserError, match="does not start from its reference"):
        dpo.train(new(), TRAIN, HELD, QUICK, tmp_path / "on", resume=True, start=whole[1])
    # the loss alone tells it, too
    monkeypatch.setattr("cai.trainer.check_reference", lambda model: None)
    with pytest.raises(UserError, match="at step 0 the loss is"):
        dpo.train(new(), TRAIN, HELD, QUICK, tmp_path / "again", resume=True, start=whole[1])


@pytest.mark.parametrize("loss", ["dpo+nll", "orpo"])
def test_each_loss_trains(loss, tmp_path):
    result = dpo.train(new(), TRAIN, [], replace(QUICK, steps=3, loss=loss), tmp_path / "run", resume=True)
    rows = rows_of(tmp_path / "run")
    assert [r["step"] for r in rows] == [1, 2, 3] and result.after["train"]["margin"] > 0.01
    assert result.after["train"]["fall"] < 0  # both add likelihood of the chosen texts
    if loss == "dpo+nll":
        assert rows[0]["loss"] > math.log(2) + 0.01 and abs(rows[0]["margins"]) < 1e-4
    else:
        assert "nll_loss" in rows[0]


def test_lost_likelihood_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    """Held-out pairs the other way round: what training raises, they lose."""
    settings = replace(QUICK, steps=8, every=1, patience=0, learning_rate=2e-3, stop_fall=0.02)
    said: list[str] = []
    result = dpo.train(new(), TRAIN, swapped(HELD), settings, tmp_path / "run", resume=True, log=said.append)
    falls = {r["step"]: r["fall"] for r in rows_of(tmp_path / "run") if r["kind"] == "held_out"}
    assert result.status == DISPLACED and result.step == result.steps - 1 < 7
    assert falls[result.steps] > 0.02 >= falls[result.step]
    assert result.after["held_out"]["fall"] == pytest.approx(falls[result.step], abs=1e-5)
    assert any("training stops, the last good checkpoint" in line for line in said)
    assert json.loads((tmp_path / "run/training.json").read_text())["status"] == DISPLACED


def test_early_stop_keeps_the_best_step(tmp_path):
    settings = replace(QUICK, steps=8, every=1, patience=2)
    result = dpo.train(new(), TRAIN, swapped(HELD), settings, tmp_path / "run", resume=True)
    assert result.status == STOPPED_EARLY and result.steps == 2 and result.step == 0
    assert result.after["held_out"]["margin"] == pytest.approx(0, abs=1e-5)
    assert not any(w.any() for name, w in weights(tmp_path / "run").items() if "lora_B" in name)


def test_a_loss_that_is_not_finite_stops(tmp_path):
    with pytest.raises(UserError, match="loss is nan at step 2: lower the learning rate"):
        Log(QUICK, tmp_path).step(2, {"loss": math.nan})


def test_default_steps_grow_with_the_data():
    assert [settings.default_steps(n, 8) for n in (1, 10, 90, 200, 4000)] == [10, 10, 90, 100, 1000]
    assert [settings.default_every(n) for n in (1, 10, 100, 1000)] == [1, 1, 10, 50]


def test_pairs_that_are_too_long_are_left_out_and_none_left_is_a_sentence(base, tmp_path):
    with pytest.raises(UserError, match="all 16 pairs are longer than 5 tokens"):
        dpo.train(base, TRAIN, HELD, replace(QUICK, max_length=5), tmp_path, resume=True, log=lambda _: None)


def test_the_same_example_on_both_sides_is_refused(base, tmp_path):
    with pytest.raises(UserError, match="1 examples .* both held out"):
        dpo.train(base, TRAIN, [TRAIN[0]], QUICK, tmp_path, resume=True, log=lambda _: None)


def test_an_adapter_of_another_making_is_not_overwritten(base, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds an adapter of another making"):
        dpo.train(base, TRAIN, HELD, QUICK, tmp_path, resume=True, log=lambda _: None)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == b"mine"


def test_half_a_checkpoint_does_not_count(tmp_path):
    for step in (0, 2, 4, 6):
        place = checkpoints.place(tmp_path, step)
        place.mkdir(parents=True)
        (place / "adapter_model.safetensors").write_bytes(b"weights")
        if step != 4:  # killed before it was declared whole
            checkpoints.complete(place)
    damaged = checkpoints.place(tmp_path, 6) / "adapter_model.safetensors"
    damaged.write_bytes(b"weigh")  # a crash of the machine itself
    assert checkpoints.steps(tmp_path) == [0, 2]
    checkpoints.prune(tmp_path, [2])
    assert [p.name for p in (tmp_path / "steps").iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize(("netrc", "key", "offline"), [
    ("", None, True),
    ("machine example.org login user password secret\n", None, True),
    ("machine api.wandb.ai login user password secret\n", None, False),
    ("", "secret", False),
])  # fmt: skip
def test_wandb_stays_offline_unless_logged_in(netrc, key, offline, monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "check", lambda name: None)
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY", "TENSORBOARD_LOGGING_DIR",
                 "TRACKIO_DIR"):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that what prepare sets is undone
        monkeypatch.delenv(name)
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert trackers.prepare("wandb", tmp_path) == ["wandb"]
    assert os.environ.get("WANDB_MODE") == ("offline" if offline else None)
    assert trackers.prepare("none", tmp_path) == []


@pytest.mark.parametrize(("settings", "held"), [
    pytest.param(QUICK, HELD, id="finished"),
    pytest.param(replace(QUICK, steps=8, every=1, patience=2), swapped(HELD), id="stopped early",
                 marks=pytest.mark.slow),
    pytest.param(replace(QUICK, steps=8, every=1, patience=0, stop_fall=0.02), swapped(HELD), id="displaced",
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_after_the_last_step_it_only_finishes(settings, held, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    said = []
    with monkeypatch.context() as patch:
        patch.setattr(dpo.curves, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            dpo.train(new(), TRAIN, held, settings, tmp_path / "a", resume=True, log=said.append)
    log = rows_of(tmp_path / "a")
    result = dpo.train(new(), TRAIN, held, settings, tmp_path / "a", resume=True, log=said.append)
    assert any("goes on from the checkpoint" in line for line in said)
    assert rows_of(tmp_path / "a") == log
    once = dpo.train(new(), TRAIN, held, settings, tmp_path / "b", resume=True, log=lambda _: None)
    assert (result.status, result.step, result.steps) == (once.status, once.step, once.steps)
    assert result.adapter == once.adapter and result.after == once.after
