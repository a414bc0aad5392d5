"""The format that DPO trains and evaluation asks in: instruction, response, end of text."""

from __future__ import annotations

from typing import Any

from cai.prompts.markers import END_OF_TEXT, INSTRUCTION, RESPONSE


def instruction_of(pair: dict[str, Any]) -> str:
    """A pair's instruction, from its prompt in the training format."""
    head, tail = training_prompt("\0").split("\0")
    return pair["prompt"].removeprefix(head).removesuffix(tail)


# Renders the training format, so that servers and transformers format a conversation exactly as training did.
TRAINING_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    + RESPONSE
    + " {{ message['content'] }}"
    + END_OF_TEXT
    + "{% else %}"
    + INSTRUCTION
    + " {{ message['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}" + RESPONSE + "{% endif %}"
)


def training_prompt(instruction: str) -> str:
    """The format that DPO trains and evaluation uses: nothing but the instruction, no exemplars."""
    return f"{INSTRUCTION} {instruction}\n{RESPONSE}"


def training_completion(text: str) -> str:
    return f" {text}"
