"""The format that DPO trains and evaluation asks in: instruction, response, end of text. Pairs are stored as
plain texts; this is where they get their format."""

from __future__ import annotations

from collections.abc import Mapping

from cai.prompts.markers import END_OF_TEXT, INSTRUCTION, RESPONSE, refuse_chat_tokens

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
    """Nothing but the instruction, no exemplars. Raises UserError if it holds a chat token."""
    return refuse_chat_tokens(f"{INSTRUCTION} {instruction}\n{RESPONSE}")


def training_completion(text: str) -> str:
    return f" {text}"


def training_pair(pair: Mapping[str, str]) -> dict[str, str]:
    """A pair as DPO reads it (Rafailov et al. 2023): TRL appends the end token to both texts."""
    return {
        "prompt": training_prompt(pair["prompt"]),
        "chosen": training_completion(pair["chosen"]),
        "rejected": training_completion(pair["rejected"]),
    }
