"""TRL's trainer: the tokens that reach it, and the reference that it starts from."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cai.core.errors import UserError
from cai.models.registry import REGISTRY
from cai.training import dpo, trainer
from cai.training.callbacks import Log
from quick import HELD, QUICK, TRAIN, new


def test_the_tokens_are_those_of_the_training_format_ends_included(whole, base):
    """As texts were rendered by hand and stored so, before pairs were plain. Without its end token the model
    would never stop."""
    seen = whole[3]
    assert len(seen) == len(TRAIN)
    for row, pair in zip(seen, TRAIN, strict=True):
        prompt = "Instruction: " + pair["prompt"] + "\nResponse:"
        for side in ("chosen", "rejected"):
            text = prompt + " " + pair[side] + "<|endoftext|>"
            assert row["prompt_ids"] + row[f"{side}_ids"] == base.tokenizer(text).input_ids
            assert row[f"{side}_ids"][-1] == base.tokenizer.eos_token_id


def test_held_out_pairs_never_reach_the_trainer(whole):
    texts = "".join(row["prompt"] for row in whole[3])
    assert all(pair["prompt"] in texts for pair in TRAIN)
    assert not any(pair["prompt"] in texts for pair in HELD)


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
    with pytest.raises(UserError, match="differs from the reference's copy"):
        dpo.train(new(), TRAIN, HELD, QUICK, tmp_path / "on", resume=True, start=whole[1])
    # the loss alone tells it, too
    monkeypatch.setattr(trainer, "check_reference", lambda model: None)
    with pytest.raises(UserError, match="at step 0 the loss is"):
        dpo.train(new(), TRAIN, HELD, QUICK, tmp_path / "again", resume=True, start=whole[1])


@pytest.mark.parametrize(("steps", "warmup", "expected"), [
    (4, 0.1, 0), (10, 0.1, 1), (70, 0.1, 7), (119, 0.1, 11), (10, 0.3, 3)
])  # fmt: skip
def test_the_learning_rate_rises_in_a_share_of_the_steps(steps, warmup, expected, fresh, tmp_path):
    """As many as a tenth, rounded down, had before it could be changed."""
    settings = replace(QUICK, steps=steps, warmup=warmup)
    fresh.add_adapter(r=8, alpha=8, seed=0)
    made = trainer.build(fresh, TRAIN, settings, tmp_path, Log(settings, tmp_path))
    assert made.args.warmup_steps == expected
    assert made.args.max_length == REGISTRY["sandbox"].max_seq_length


def test_a_4_bit_models_adapter_is_trained_in_float32(tmp_path):
    """TRL casts it to bfloat16, where a step of 5e-6 on a weight of 0.01 is none."""
    from cai.models.loader import load

    model, settings = load(REGISTRY["sandbox"], 4), replace(QUICK, loss="dpo")
    model.add_adapter(r=8, alpha=8, seed=0)
    before = {n: p.detach().clone() for n, p in model.model.named_parameters() if p.requires_grad}
    made = trainer.build(model, TRAIN, settings, tmp_path, Log(settings, tmp_path))
    trained = {n: p for n, p in made.model.named_parameters() if p.requires_grad}
    assert trained.keys() == before.keys()
    assert all(p.dtype == torch.float32 and torch.equal(p, before[n]) for n, p in trained.items())


def test_weights_that_cannot_be_trained_in_float32_are_refused(fresh, tmp_path):
    fresh.add_adapter(r=8, alpha=8, seed=0)
    for parameter in fresh.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    with pytest.raises(UserError, match="lora_A.default.weight is trained in bfloat16, where small steps"):
        trainer.build(fresh, TRAIN, QUICK, tmp_path, Log(QUICK, tmp_path))


def test_what_the_trainer_is_told_is_recorded_and_the_same_on_both_machines(whole):
    facts = json.loads((whole[1] / "training.json").read_text())
    here = trainer.stated(QUICK, len(TRAIN), cuda=False, bf16=False)
    assert facts["trainer"] == here and here["weight_decay"] == 0.0 and here["max_grad_norm"] == 1.0
    there = trainer.stated(QUICK, len(TRAIN), cuda=True, bf16=True)
    machine = {"optim", "bf16", "gradient_checkpointing", "gradient_checkpointing_kwargs"}
    assert {key for key in here | there if here[key] != there[key]} == machine
    assert trainer.stated(QUICK, len(TRAIN), cuda=True, bf16=False)["fp16"] is True  # a GPU without bfloat16


def test_a_trainer_that_takes_something_else_than_it_is_told_is_refused():
    args = SimpleNamespace(weight_decay=0.001, seed=0)
    with pytest.raises(UserError, match=r"\(weight_decay 0.0 became 0.001\): install the pinned packages"):
        trainer.check_told(args, {"weight_decay": 0.0, "seed": 0})
    trainer.check_told(args, {"seed": 0})
