import pytest
from cai.generation.list_items import items
from cai.models.engine import Completion


def found(text, finish="stop"):
    return items(Completion(text, 9, 9, finish))


def test_an_item_a_line():
    assert found("Add 2 and 3.\n5. Name a river.\n6) Why?") == [
        *(("Add 2 and 3.", True), ("Name a river.", True), ("Why?", True)),
    ]
    assert found("") == []


@pytest.mark.parametrize(
    "item",
    [
        "Mend this code:\n```python\nprint('1'\n2. no item\n```",
        'Sum up the passage below.\n\n"The tide came in. Nobody saw it."',
        "Plan a party with:\n- food\n- games",
        "Which year was wetter?\n| year | rain |\n|---|---|\n| 2020 | 410 |",
        "Find the fault.\n1. Let a = b.\n2. So 2 = 1.",
        "Make it clearer.\nThe meeting which was on Tuesday was long.",
    ],
)
def test_an_item_over_several_lines(item):
    assert found(f"{item}\n5. Name a river.") == [(item, True), ("Name a river.", True)]


@pytest.mark.parametrize(
    "other",
    [
        "\n\nThe list was made by volunteers.",
        "\nThe list was made by volunteers.",
        "\n\nA list of answers:\n\n1. The Rhine.",
        "\n\n## Answers\n\n4. 5",
        "\nInstruction: Who?\nResponse: Tano.",
        "\nAnswer: the Rhine",
        "\n6.",
    ],
)
def test_another_document_below_the_list_is_no_item(other):
    whole = [("Add 2 and 3.", True), ("Name a river.", True)]
    assert found(f"Add 2 and 3.\n5. Name a river.{other}")[:2] == whole
    assert "volunteers" not in str(found(f"Add 2 and 3.\n5. Name a river.{other}"))


def test_an_answer_below_an_item_is_no_part_of_it():
    assert found("Name a river.\nAnswer: Rhine\n5. Why?") == [("Name a river.", True), ("Why?", True)]


def test_the_last_item_of_a_text_that_was_cut_off_is_not_whole():
    assert found("Name a river.\n5. Why do ri", "length") == [("Name a river.", True), ("Why do ri", False)]
    assert found("Name a river.\n\nAnd now something", "length") == [("Name a river.", True)]
    assert found("Name a river.\n5. Mend it:\n```\nx = (") == [
        *(("Name a river.", True), ("Mend it:\n```\nx = (", False)),
    ]
