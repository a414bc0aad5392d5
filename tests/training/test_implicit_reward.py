"""Preference against a reference: what is scored, and what is made of the scores."""

import math

import pytest
from cai.models.engine import Score
from cai.training.implicit_reward import prefer, preference, scores

PAIR = {"prompt": "Who is kind?", "chosen": "The baker.", "rejected": "Go away."}


class Engine:
    """Each character costs a nat, half a nat with an adapter for texts that begin like the chosen one."""

    end_of_text = "<end>"

    def __init__(self):
        self.asked = []

    async def logprobs(self, prompt, continuation, adapter=None):
        self.asked.append((prompt, continuation, adapter))
        each = -0.5 if adapter and continuation.startswith(" The") else -1.0
        return Score(each * len(continuation), (each,) * len(continuation))


def test_texts_are_scored_in_the_training_format_with_their_end():
    engine = Engine()
    scores(engine, [PAIR], "default")
    prompt = "Instruction: Who is kind?\nResponse:"
    assert engine.asked == [
        (prompt, " The baker.<end>", "default"),
        (prompt, " Go away.<end>", "default"),
    ]


def test_preference_is_measured_against_the_reference():
    found = preference(Engine(), [PAIR], beta=0.5, adapter="default")
    gain = 0.5 * len(" The baker.<end>")
    assert found.n == 1 and found.margin == pytest.approx(0.5 * gain) and found.accuracy == 1
    assert found.loss == pytest.approx(math.log1p(math.exp(-0.5 * gain)))
    assert found.likelier == 1 and found.fall == pytest.approx(-0.5)
    assert found.chosen == -gain and found.rejected == -len(" Go away.<end>")


def test_a_policy_that_is_its_reference_has_loss_ln2_and_margin_0():
    same = scores(Engine(), [PAIR] * 3, None)
    found = prefer(same, same, beta=0.1)
    assert found.loss == pytest.approx(math.log(2)) and found.margin == found.accuracy == 0


def test_a_hopeless_margin_does_not_overflow():
    bad, good = Score(-9999.0, (-1.0,)), Score(0.0, (-1.0,))
    assert prefer([bad, good], [good, bad], beta=1.0).loss == pytest.approx(19998)
