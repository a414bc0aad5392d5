import json
import math

import pytest
from cai import training as t
from cai.engine import LocalEngine
from cai.records import preference_pair
from cai.registry import REGISTRY
from cai.run import UserError

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
SANDBOX = t.Settings.of(REGISTRY["sandbox"], steps=4, batch_size=3)


def test_settings_are_the_specifications_for_the_32b():
    s = t.Settings.of(REGISTRY["Qwen/Qwen2.5-32B"], steps=1)
    assert (s.lora_r, s.lora_alpha, s.learning_rate, s.beta, s.max_length) == (32, 64, 5e-6, 0.1, 4096)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from cai.models import load

    model = load(REGISTRY["sandbox"])
    model.add_adapter(r=SANDBOX.lora_r, alpha=SANDBOX.lora_alpha, seed=0)
    before = t.preference(LocalEngine(model), PAIRS, SANDBOX.beta, "default")
    output = tmp_path_factory.mktemp("out")
    log = t.train_dpo(model, PAIRS, SANDBOX, output)
    return model, before, log, output


def test_training_starts_at_its_reference_and_moves_towards_chosen(trained):
    model, before, log, _ = trained
    assert before.loss == pytest.approx(math.log(2), abs=1e-6) and before.margin == 0 and before.n == 3
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(log[0]["margins"]) < 1e-4
    after = t.preference(LocalEngine(model), PAIRS, SANDBOX.beta, "default")
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
    t.train_dpo(fresh, swapped, SANDBOX, tmp_path)
    assert t.preference(LocalEngine(fresh), PAIRS, SANDBOX.beta, "default").margin < -0.05


def test_four_bits_train_and_can_be_saved_and_loaded(tmp_path):
    from cai.models import load

    model = load(REGISTRY["sandbox"], 4)
    model.add_adapter(r=8, alpha=8, seed=0)
    log = t.train_dpo(model, PAIRS, SANDBOX, tmp_path / "log")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=t.START_TOLERANCE) and all(
        math.isfinite(x["grad_norm"]) for x in log
    )
    after = t.preference(LocalEngine(model), PAIRS, SANDBOX.beta, "default")
    assert after.margin > 0.02
    model.save_adapter(tmp_path / "adapter")
    again = load(REGISTRY["sandbox"], 4)
    again.load_adapter(tmp_path / "adapter", "default")
    assert t.preference(LocalEngine(again), PAIRS, SANDBOX.beta, "default").margin == pytest.approx(
        after.margin, abs=0.05
    )


def test_bad_input_is_a_sentence(fresh, tmp_path):
    with pytest.raises(UserError, match="no preference pairs"):
        t.train_dpo(fresh, [], SANDBOX, tmp_path)
    with pytest.raises(UserError, match="0 training steps"):
        t.train_dpo(fresh, PAIRS, t.Settings.of(REGISTRY["sandbox"], steps=0), tmp_path)
    with pytest.raises(UserError, match="rank 0"):
        fresh.add_adapter(r=0, alpha=1, seed=0)


@pytest.mark.parametrize("row", [{"loss": 0.60, "margins": 0.0}, {"loss": 0.6931, "margins": 0.5}])
def test_a_start_elsewhere_than_at_the_reference_is_refused(row):
    with pytest.raises(UserError, match="does not start from its reference"):
        t.check_start(row)
    t.check_start({"loss": 0.6931, "margins": 0.0})


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
