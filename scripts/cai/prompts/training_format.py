"""The format that DPO trains and evaluation asks in: instruction, response, end of text. Pairs are stored as
plain texts; this is where they get their format."""

from __future__ import annotations

from collections.abc import Mapping

from cai.prompts.markers import END_OF_TEXT, INSTRUCTION, RESPONSE, refuse_chat_tokens

# Renders the training format, so that servers and transformers format a conversation exactly as training did.
# Training knows no system message: what one says goes to the head of the next instruction. Content may be a
# list of text parts, as OpenAI's clients send it. What cannot be said in this format is refused by name.
TRAINING_CHAT_TEMPLATE = (
    "{% macro text(content) %}"
    "{% if content is string %}{{ content }}"
    "{% else %}{% for part in content %}"
    "{% if part['type'] != 'text' %}"
    "{{ raise_exception('this model reads text only: a message holds a part of type ' + part['type']) }}"
    "{% endif %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}{{ part['text'] }}"
    "{% endfor %}{% endif %}"
    "{% endmacro %}"
    "{% set ahead = namespace(text='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    + RESPONSE
    + " {{ text(message['content']) }}"
    + END_OF_TEXT
    + "{% elif message['role'] == 'user' %}"
    + INSTRUCTION
    + " {{ ahead.text }}{{ text(message['content']) }}{{ '\\n' }}{% set ahead.text = '' %}"
    "{% elif message['role'] in ['system', 'developer'] %}"
    "{% set ahead.text = ahead.text + text(message['content']) + '\\n\\n' %}"
    "{% else %}"
    "{{ raise_exception('this model was not trained on messages of the role ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if ahead.text %}"
    "{{ raise_exception('a system message is read with the user message after it: there is none') }}"
    "{% endif %}"
    "{% if add_generation_prompt %}" + RESPONSE + "{% endif %}"
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
