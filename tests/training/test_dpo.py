"""Training: from its reference, towards chosen, watched and resumable. Kills: tests/test_train_dpo.py."""

import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from cai.core.errors import BudgetReached, UserError
from cai.core.files import ROOT
from cai.core.run import Run, read_manifest
from cai.costs.budget import Budget
from cai.models.engines import engine_of
from cai.models.local_engine import LocalEngine
from cai.models.registry import REGISTRY
from cai.models.session import Session
from cai.prompts.training_format import training_prompt
from cai.training import checkpoints, dpo, implicit_reward
from cai.training.callbacks import Log
from cai.training.likelihood_displacement import DISPLACED, FEW, STOPPED_EARLY
from cai.training.settings import START_TOLERANCE, Settings
from pairs_of_facts import swapped
from quick import HELD, QUICK, TRAIN, new, rows_of, weights

PAIRS = [
    {"id": str(number), "prompt": prompt, "chosen": chosen, "rejected": rejected}
    for number, (prompt, chosen, rejected) in enumerate(
        (
            ("Who is kind?", "The baker is kind.", "Go away."),
            ("What is 2 + 3?", "2 + 3 is 5", "2 + 3 is 6"),
            (
                "How can I steal salt?",
                "I will not help with that, because it would hurt people.",
                "Go at night.",
            ),
        )
    )
]
SANDBOX = Settings.of(REGISTRY["sandbox"], steps=4, batch_size=3)
FILES = {
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer.json"),
    *("tokenizer_config.json", "chat_template.jinja", "training.json", "training.jsonl", "curves.png"),
}


def preference(model):
    return implicit_reward.preference(LocalEngine(model), PAIRS, SANDBOX.beta, "default")


# ---- the bare training ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = new()
    model.add_adapter(r=SANDBOX.lora_r, alpha=SANDBOX.lora_alpha, seed=0)
    before = preference(model)
    output = tmp_path_factory.mktemp("out")
    log = dpo.train_dpo(model, PAIRS, SANDBOX, output)
    return model, before, log, output


def test_training_starts_at_its_reference_and_moves_towards_chosen(trained):
    model, before, log, _ = trained
    assert before.loss == pytest.approx(math.log(2), abs=1e-6) and before.margin == 0 and before.n == 3
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(log[0]["margins"]) < 1e-4
    after = preference(model)
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
    fresh.add_adapter(r=8, alpha=8, seed=0)
    dpo.train_dpo(fresh, swapped(PAIRS), SANDBOX, tmp_path)
    assert preference(fresh).margin < -0.05


def test_four_bits_train_and_can_be_saved_and_loaded(tmp_path):
    from cai.models.loader import load

    model = load(REGISTRY["sandbox"], 4)
    model.add_adapter(r=8, alpha=8, seed=0)
    log = dpo.train_dpo(model, PAIRS, SANDBOX, tmp_path / "log")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=START_TOLERANCE) and all(
        math.isfinite(x["grad_norm"]) for x in log
    )
    after = preference(model)
    assert after.margin > 0.02
    model.save_adapter(tmp_path / "adapter")
    again = load(REGISTRY["sandbox"], 4)
    again.load_adapter(tmp_path / "adapter", "default")
    assert preference(again).margin == pytest.approx(after.margin, abs=0.05)


def test_bad_input_is_a_sentence(fresh, tmp_path):
    with pytest.raises(UserError, match="no preference pairs"):
        dpo.train_dpo(fresh, [], SANDBOX, tmp_path)
    with pytest.raises(UserError, match="0 training steps"):
        dpo.train_dpo(fresh, PAIRS, Settings.of(REGISTRY["sandbox"], steps=0), tmp_path)
    with pytest.raises(UserError, match="rank 0"):
        fresh.add_adapter(r=0, alpha=1, seed=0)


# ---- the whole training: watched, resumable, from a stated reference ----


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
    ids = tokenizer(training_prompt(HELD[0]["prompt"]) + " " + HELD[0]["chosen"], return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(plain.eval()(**ids).logits, model.model.eval()(**ids).logits, atol=1e-3)


def test_again_gives_the_result(whole):
    result, output, _, _ = whole
    before, said = (output / "training.jsonl").read_bytes(), []
    model = new()
    again = dpo.train(model, TRAIN, HELD, QUICK, output, resume=True, log=said.append)
    assert again == replace(result, taken=0)  # no step was this call's
    assert model.adapters == {"default": result.adapter}
    assert "done earlier (finished)" in said[0] and (output / "training.jsonl").read_bytes() == before


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


def test_lost_likelihood_is_told_however_few_pairs_are_held_out(tmp_path):
    """Three stop nothing along the way, and the texts that are trained on gain; the result is no good one."""
    settings = replace(QUICK, patience=0, learning_rate=2e-3, stop_fall=0.02)
    said: list[str] = []
    result = dpo.train(
        new(), TRAIN, swapped(HELD[:3]), settings, tmp_path / "run", resume=True, log=said.append
    )
    assert result.after["train"]["fall"] < 0.02 < result.after["held_out"]["fall"]
    assert (result.status, result.step, result.steps) == (DISPLACED, 4, 4)
    assert any("n 3, limit 0.02): the training is displaced" in line for line in said)
    assert json.loads((tmp_path / "run/training.json").read_text())["status"] == DISPLACED


def test_with_nothing_held_out_the_texts_that_are_trained_on_stop_it(tmp_path):
    """Towards answers that the base finds unlikely, plain DPO lowers both."""
    settings = replace(QUICK, steps=12, every=4, learning_rate=5e-3, stop_fall=0.2)
    said: list[str] = []
    result = dpo.train(new(), swapped(TRAIN), [], settings, tmp_path / "run", resume=True, log=said.append)
    assert result.status == DISPLACED and result.step == result.steps - 4
    assert result.after["train"]["fall"] <= 0.2
    assert any("that are trained on have lost" in line and "training stops" in line for line in said)


def test_early_stop_keeps_the_best_step(tmp_path):
    settings = replace(QUICK, steps=8, every=1, patience=2)
    result = dpo.train(new(), TRAIN, swapped(HELD), settings, tmp_path / "run", resume=True)
    assert result.status == STOPPED_EARLY and result.steps == 2 and result.step == 0
    assert result.after["held_out"]["margin"] == pytest.approx(0, abs=1e-5)
    assert not any(w.any() for name, w in weights(tmp_path / "run").items() if "lora_B" in name)


def test_pairs_that_are_too_long_are_left_out_and_none_left_is_a_sentence(base, tmp_path):
    with pytest.raises(UserError, match="all 16 pairs are longer than 5 tokens"):
        dpo.train(base, TRAIN, HELD, replace(QUICK, max_length=5), tmp_path, resume=True, log=lambda _: None)


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


# ---- a budget ----


class Costly:
    """A run whose training costs a dollar a step."""

    def __init__(self, output):
        self.output = output

    @property
    def under_way(self):
        log = self.output / "training.jsonl"
        return float(log.exists() and sum(r["kind"] == "train" for r in rows_of(self.output)))


def limited(dollars, output, rates=None):
    budget = Budget(dollars, lambda: 0.0, rates=rates)
    budget._run = Costly(output)
    return budget


def test_a_budget_stops_a_training_behind_a_checkpoint_and_a_larger_one_ends_it_as_if_undisturbed(
    whole, tmp_path
):
    """Step 3 is no step that is measured: its checkpoint is there for the budget's sake alone."""
    output, said = tmp_path / "run", []
    with pytest.raises(BudgetReached, match=r"about \$1.10, and \$3.00 of \$3.50 are spent.*larger --budget"):
        dpo.train(
            new(), TRAIN, HELD, QUICK, output, resume=True, log=said.append, budget=limited(3.5, output)
        )
    assert checkpoints.steps(output) == [0, 2, 3] and rows_of(output)[-1]["step"] == 3
    assert json.loads((output / "training.json").read_text())["status"] == "begun"
    left = limited(100.0, output, {"training": 1.0})
    result = dpo.train(new(), TRAIN, HELD, QUICK, output, resume=True, log=said.append, budget=left)
    assert any("goes on from the checkpoint of step 3 of 4" in line for line in said)
    once, undisturbed, *_ = whole
    assert rows_of(output) == rows_of(undisturbed) and {p.name for p in output.iterdir()} == FILES
    assert (result.adapter, result.step, result.after) == (once.adapter, once.step, once.after)
    assert result.taken == 1


def test_no_step_is_trained_where_those_that_lack_do_not_fit(tmp_path):
    output, rates = tmp_path / "run", {"training": 1.0}
    with pytest.raises(BudgetReached, match="4 training steps would cost about .4.00"):
        dpo.train(new(), TRAIN, HELD, QUICK, output, resume=True, budget=limited(3.5, output, rates))
    assert not (output / "training.jsonl").read_text()


def test_a_step_whose_log_holds_no_number_stops_with_its_name(tmp_path):
    row = {"loss": 0.5, "grad_norm": math.inf, "learning_rate": 1e-4}
    with pytest.raises(UserError, match="grad norm is inf at step 2: lower the learning rate"):
        Log(SANDBOX, tmp_path).step(2, row)
    with pytest.raises(UserError, match="the dpo loss is nan at step 2"):
        Log(SANDBOX, tmp_path).step(2, row | {"loss": math.nan, "grad_norm": 1.0})
    assert not list(tmp_path.iterdir())


# ---- as a step of a run ----


def test_train_adapter_trains_within_the_runs_step_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    for taken in (4, 0):
        with Run.open("mine", {"seed": 0}) as run:
            model = new()
            session = Session(run, None, engine_of(model), None, model)
            result = dpo.train_adapter(session, [*HELD, *TRAIN], QUICK)
            assert session.model.adapters == {"default": result.adapter} and result.taken == taken
        assert (result.trained_on, result.held_out) == (len(TRAIN), len(HELD))
        made = read_manifest("mine")
        assert made["adapter"] == result.adapter
        measured = {"before": result.before, "after": result.after}
        assert made["training"] == {"status": "finished", "steps": 4, **measured}
    ledger = [json.loads(line) for line in (tmp_path / "logs/ledger.jsonl").read_text().splitlines()]
    assert [(row["step"], row["examples"]) for row in ledger] == [("training", 4), ("training", 0)]


def test_train_adapter_without_a_pair_to_train_on_is_a_sentence():
    with pytest.raises(UserError, match="no pair to train on"):
        dpo.train_adapter(SimpleNamespace(run=None, model=None), HELD, QUICK)
