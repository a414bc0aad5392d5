"""How rows of the field's data sets become prompts, and what is named as unread."""

import pytest
from cai.core.errors import UserError
from cai.generation.row_forms import read_row

EGG = "How do I boil an egg?"


def read(**row):
    said = read_row(row, "p.jsonl, line 1", "jsonl", "p.jsonl")
    return said.text.strip(), list(said.unread)


@pytest.mark.parametrize(
    ("row", "text", "unread"),
    [
        (
            {"instruction": "Sum up.", "context": "A text.", "response": "x", "category": "y"},
            "Sum up.\n\nA text.",
            ["response", "category"],
        ),
        ({"instruction": "Sum up.", "input": " ", "output": "x"}, "Sum up.", ["output"]),
        ({"instruction": "Say more.", "instances": [{"input": "a", "output": "b"}]}, "Say more.\n\na", []),
        ({"instruction": "Say more.", "instances": [{"input": "", "output": "b"}]}, "Say more.", []),
        ({"instruction": "Say.", "instances": [{"input": "a"}, {"input": "c"}]}, "Say.\n\na", ["instances"]),
        (
            {"question": "Which?", "options": {"A": "red", "B": "saw", "C": None}},
            "Which?\n\nA. red\nB. saw",
            [],
        ),
        (
            {"question": "Which?", "choices": {"text": ["red", "saw"], "label": ["1", "2"]}},
            "Which?\n\n1. red\n2. saw",
            [],
        ),
        ({"question": "Which?", "choices": [3, 4.5], "answer": 1}, "Which?\n\nA. 3\nB. 4.5", ["answer"]),
        ({"question": "Which?", "choices": "red or saw"}, "Which?\n\nred or saw", []),
        (
            {"question": "Which?", "choices": [["red"]], "context": {"title": []}},
            "Which?",
            ["choices", "context"],
        ),
        (
            {"system": "Be kind.", "question": "Who?", "chosen": "a", "rejected": "b"},
            "Be kind.\n\nWho?",
            ["chosen", "rejected"],
        ),
        ({"system_prompt": "Be kind.", "question": "Who?"}, "Be kind.\n\nWho?", []),
        ({"Prompt": "Who?", " TASK ": "math", "Id": 7}, "Who?", ["Id"]),
        ({"prompt": "Who?", "task": "cooking"}, "Who?", ["task"]),
        ({"prompt": "Who?", "meta": "", "more": None}, "Who?", []),
        ({"prompt": None, "id": 3}, "", ["id"]),
        ({"prompt": "", "question": "Who?"}, "Who?", []),
        ({"instruction": None, "prompt": None, "question": None}, "", []),
        ({"Text": "x", "text": "y", "prompt": "Who?"}, "Who?", ["Text", "text"]),
        ({"behavior": "Do it", "BEHAVIORID": "x", "contextstring": "c"}, "c\n\n---\n\nDo it", ["BEHAVIORID"]),
    ],
)
def test_what_stands_beside_the_prompt(row, text, unread):
    assert read(**row) == (text, unread)


@pytest.mark.parametrize(
    "transcript",
    [
        "\n\nHuman: {}\n\nAssistant: In water.\n\nHuman: How long?\n\nAssistant:",
        "\r\n\r\nHuman: {}\r\n\r\nAssistant: In water.",
        "Human: {}\nAssistant: In water.\nHuman: How long?",
        "Human:{}\n \n\tAssistant: In water.\n\nHuman: How long?\n\nAssistant: Long.",
        "Human: {}\rAssistant: In water.",
        " Human: {}",
    ],
)
@pytest.mark.parametrize("key", ["prompt", "instruction", "question", "chosen"])
def test_transcripts_give_the_first_human_turn_under_every_key(transcript, key):
    assert read(**{key: transcript.format(EGG), "rejected": "x"}) == (EGG, ["rejected"])


def test_texts_that_are_no_transcripts_or_have_no_human_turn():
    for text in ("What does Human: mean?", "Who says:\nHuman: hello\nAssistant: hi", "Is it Assistant:"):
        assert read(prompt=text) == (text, [])
    assert read(prompt="Assistant: hello\n\nHuman: hi") == ("", [])
    assert read(prompt=f"Be kind.\n\nHuman: {EGG}\n\nAssistant:") == (f"Be kind.\n\n{EGG}", [])
    assert read(prompt="\nHuman: a" * 20_000 + "\nAssistant:") == ("a", [])  # at once


USER, ASSISTANT = {"role": "user", "content": EGG}, {"role": "assistant", "content": "In water."}
HUMAN, GPT = {"from": "human", "value": EGG}, {"from": "gpt", "value": "In water."}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"messages": [USER, ASSISTANT]}, EGG),
        ({"messages": [{"role": "System", "content": "Be kind."}, USER]}, f"Be kind.\n\n{EGG}"),
        ({"conversations": [HUMAN, GPT, {"from": "human", "value": "And then?"}]}, EGG),
        ({"conversations": [{"from": "system", "value": "Be kind."}, HUMAN]}, f"Be kind.\n\n{EGG}"),
        ({"system": "Be kind.", "conversation": [HUMAN]}, f"Be kind.\n\n{EGG}"),
        ({"prompt": [USER]}, EGG),
        ({"chosen": [USER, ASSISTANT], "rejected": ""}, EGG),
        ({"messages": [ASSISTANT]}, ""),
        ({"messages": [{"role": "user", "content": None}]}, ""),
    ],
)
def test_chats_give_the_first_turn_of_the_user(row, text):
    """Through `datasets` a message has the keys of all messages."""
    empty = dict.fromkeys(("role", "content", "from", "value"))
    chat = {key: [empty | m for m in v] if isinstance(v, list) else v for key, v in row.items()}
    assert read(**chat) == read(**row) == (text, [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"Prompt": "a", "prompt": "b"}, "'Prompt' and 'prompt' differ in their case only; rename one"),
        ({"messages": "[{'role': 'user'}]"}, "'messages' is of type str, and must be a list of turns"),
        ({"messages": [{"text": "a"}]}, "the prompt is of type list"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "the prompt is of type list"),
        ({}, "none of the keys instruction, .*it has no key"),
    ],
)
def test_rows_that_are_refused(row, message):
    with pytest.raises(UserError, match=f"p.jsonl, line 1: .*{message}"):
        read(**row)
