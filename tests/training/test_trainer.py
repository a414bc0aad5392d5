"""TRL's trainer: the tokens that reach it, and the reference that it starts from."""

from dataclasses import replace

import pytest
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
