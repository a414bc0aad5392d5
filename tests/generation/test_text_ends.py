from dataclasses import replace

import pytest
from cai.generation.text_ends import NEXT_PAGE, is_cut_off, next_page, own_text
from cai.models.engine import Completion
from cai.models.registry import REGISTRY

LARGE = REGISTRY["Qwen/Qwen2.5-32B"]
RUNS_ON = "Lima.\n\nInstruction: What is the capital of Chile?\nResponse: Sant"


def test_a_text_that_goes_on_with_another_page_is_cut_there_and_says_so():
    done = own_text(Completion(RUNS_ON, 20, 9, "length"), LARGE, "What is the capital of Peru?")
    assert done == Completion("Lima.", 20, 9, "stop", NEXT_PAGE)


def test_only_a_base_model_that_was_shown_pages_begins_another():
    done = Completion(RUNS_ON, 20, 9, "length")
    for spec in (REGISTRY["sandbox"], replace(LARGE, kind="instruct")):
        assert own_text(done, spec, "What is the capital of Peru?") is done
    whole = Completion("Lima.", 3, 9, "stop", "<eos>")
    assert own_text(whole, LARGE, "What is the capital of Peru?") is whole


@pytest.mark.parametrize(
    ("rest", "asked"),
    [
        ("Principle: Be kind.\nCritique: It is.", "Who?"),
        ("Critique: It is kind.\nRevision request: Make it kind.", "Who?"),
        ("Instruction: Who else?", "Who?"),
        ("Instruction:", "Who?"),
        ("### Instruction:\nWho else?\n\n### Response:\nMira.", "Who?"),
        ("Q: Who else?\nA: Mira.", "Who?"),
        ("Task: Name a town.\nOutput: Drola", "Who?"),
        ("Response A: Tano\nResponse B: Mira", "Who?"),
        ("Instruction: Who else?\u2028Response: Mira.", "Who?"),
        ("Instruction: Who else?\nResponse: Mira.", "Give an example of a mayor."),
    ],
)
def test_another_page(rest, asked):
    assert next_page(f"It is Tano.\n\n{rest}", asked) == len("It is Tano.\n\n")


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Strength: short.\nCritique: too short.\nNext step: go on.", "How do I review?"),
        ("Mayors, briefly.\n\nQ: Who?\nA: Tano.", "Write an FAQ about mayors."),
        ("Baker: Who?\n\nUser: Tano.\nAssistant: Mira.", "Tell me."),
        ("Mayors.\n\nQ: Who knows?", "Tell me."),
        ("Critique of plays is hard.\nIt takes time.", "How do I review?"),
        ("One record:\n\nInstruction: Who?\nResponse: Tano.", "Show the Alpaca format."),
        ("Dear all,\n\nInstruction: tick a box.\nResponse: by post.\n\nThanks!", "Write a survey e-mail."),
        ("```\nInstruction: Who?\nResponse: Tano.\n```\nThat is it.", "Tell me."),
        ("Principle: be kind.\nPrinciple: be short.\nThat is all.", "Tell me."),
    ],
)
def test_lines_with_markers_that_are_the_answers_own(text, asked):
    assert next_page(text, asked) is None


@pytest.mark.parametrize(
    "text",
    [
        "You will need:",
        "```\nx = 1",
        "First\n1. Loosen the nuts.\n2.",
        "| a | b |\n|---|---|\n| 1 |",
        '{"a": [1, 2',
        "One two three four five six seven eight nine ten eleven twelve thirteen fourteen of the",
        "One two three four five six seven eight nine ten eleven twelve thirteen fourteen because",
        "Eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn und noch eine",
    ],
)
def test_a_text_that_breaks_off(text):
    assert is_cut_off(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "Canberra",
            "391",
            "`yield`",
            "of the",
            "- a\n- b",
            "| a | b |\n|---|---|\n| 1 | 2 |",
            '{"a": [1]}',
        ),
        "The tune is still something of a riddle",
        "```\nx = 1\n```",
        "See https://docs.python.org/3/",
    ],
)
def test_a_text_that_does_not(text):
    assert not is_cut_off(text)
