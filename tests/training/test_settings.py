"""What a training is told, and for how long."""

from dataclasses import replace

import pytest
from cai.core.errors import UserError
from cai.models.registry import REGISTRY
from cai.training.settings import Settings, default_every, default_steps, steps_of

SANDBOX, LARGE = REGISTRY["sandbox"], REGISTRY["Qwen/Qwen2.5-32B"]


def test_settings_are_the_specifications_for_the_32b():
    s = Settings.of(LARGE, steps=1)
    assert (s.lora_r, s.lora_alpha, s.learning_rate, s.beta, s.max_length) == (32, 64, 5e-6, 0.1, 4096)


def test_the_registrys_values_are_taken_and_can_be_overridden():
    spec = replace(SANDBOX, warmup=0.3, loss="orpo")
    assert Settings.of(spec, 1).loss == "dpo" and Settings.of(spec, 1, loss=None).loss == "orpo"
    assert Settings.of(spec, 1).warmup == 0.3 and Settings.of(spec, 1, warmup=0.0).warmup == 0


@pytest.mark.parametrize(("wrong", "said"), [
    ({"steps": 0}, "0 training steps"),
    ({"loss": "ppo"}, "choose one of dpo, dpo\\+nll, orpo"),
    ({"warmup": 1.5}, "warmup 1.5"),
    ({"learning_rate": float("nan")}, "learning rate nan"),
    ({"beta": 0.0}, "beta 0.0"),
    ({"lora_r": 0}, "LoRA rank 0"),
])  # fmt: skip
def test_what_cannot_be_trained_with_is_a_sentence(wrong, said):
    with pytest.raises(UserError, match=said):
        replace(Settings.of(SANDBOX, steps=1), **wrong).checked()


def test_default_steps_grow_with_the_data_and_the_passes():
    assert [default_steps(SANDBOX, n) for n in (1, 10, 90, 200, 4000)] == [10, 10, 90, 100, 1000]
    assert default_steps(replace(SANDBOX, passes=3.0), 4000) == 1500
    assert [default_every(n) for n in (1, 10, 100, 1000)] == [1, 1, 10, 50]


def test_a_step_sees_no_more_pairs_than_there_are():
    assert [steps_of(LARGE, n, 1.0) for n in (1, 7, 8, 9)] == [1, 1, 1, 2]
    assert steps_of(replace(LARGE, batch_size=4), 5, 3.0) == 2  # of 15 pairs, two batches of 4 a step
