"""An instruct model's own chat template, for its prompts alone: a base model never sees one.

Templates differ in what they take. A system message goes to its place in the template, or where there is none
to the head of the user's message; content may be text or a list of text parts. Some templates add a system
message of their own where none is given, Qwen2.5's "You are Qwen, created by Alibaba Cloud. You are a helpful
assistant.": it is left, since the model is used with it everywhere, and `system` says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from cai.core.errors import UserError
from cai.models.registry import ModelSpec

Message = Mapping[str, Any]  # role, and content: a text, or [{"type": "text", "text": ...}, ...]
SYSTEM = ("system", "developer")
PROBE = ("Sapphire sentence.", "Copper question?")  # two texts that no template holds


class Template:
    """See models.engine.ChatTemplate."""

    def __init__(self, name: str, tokenizer: Any):
        self._name, self._tokenizer = name, tokenizer
        tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        self.special_tokens = sorted((t for t in tokens if len(t) > 1), key=len, reverse=True)
        self._as_parts = False
        if not self._says(PROBE[1], [{"role": "user", "content": PROBE[1]}]):
            self._as_parts = True  # Llama Guard 3 1B's reads nothing else
            if not self._says(PROBE[1], [{"role": "user", "content": PROBE[1]}]):
                raise UserError(f"the chat template of {name} leaves out what a user says: it cannot be used")

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation so far, up to the reply's first token. Raises UserError for a part that is no
        text, and for a conversation that the template refuses."""
        conversation = [{"role": m["role"], "content": self._text(m["content"])} for m in messages]
        if any(m["role"] in SYSTEM for m in conversation) and not self._takes_system:
            conversation = self._merged(conversation)
        rendered, refused = self._apply(conversation)
        if rendered is None:
            raise UserError(f"the chat template of {self._name} refuses a conversation: {refused}")
        return rendered

    @cached_property
    def system(self) -> str | None:
        """The system message that the template adds where none is given, None if it adds none."""
        text, question = PROBE
        asked = {"role": "user", "content": question}
        alone, _ = self._apply([asked])
        given, _ = self._apply([{"role": "system", "content": text}, asked])
        if not alone or not given or given.count(text) != 1:
            return None
        before, after = given.split(text)
        own = alone.removeprefix(before).removesuffix(after)
        return own if alone == before + own + after and own else None

    @cached_property
    def _takes_system(self) -> bool:
        text, question = PROBE
        return self._says(text, [{"role": "system", "content": text}, {"role": "user", "content": question}])

    def _says(self, text: str, conversation: Sequence[Mapping[str, str]]) -> bool:
        rendered, _ = self._apply(conversation)
        return rendered is not None and text in rendered

    def _apply(self, conversation: Sequence[Mapping[str, str]]) -> tuple[str | None, str | None]:
        """(the rendered text, None), or (None, why the template refuses)."""
        from jinja2 import TemplateError

        if self._as_parts:
            conversation = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in conversation]
        try:
            return self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True
            ), None
        except TemplateError as error:
            return None, str(error)

    def _merged(self, conversation: list[dict[str, str]]) -> list[dict[str, str]]:
        """System messages at the head of the user message that follows them."""
        merged, ahead = [], ""
        for message in conversation:
            if message["role"] in SYSTEM:
                ahead += message["content"] + "\n\n"
            elif message["role"] == "user":
                merged.append(message | {"content": ahead + message["content"]})
                ahead = ""
            else:
                merged.append(message)
        if ahead:
            raise UserError(
                f"the chat template of {self._name} has no place for a system message, and no user message "
                "follows it to which it could be added"
            )
        return merged

    def _text(self, content: str | Sequence[Mapping[str, Any]]) -> str:
        if isinstance(content, str):
            return content
        other = next((part.get("type") for part in content if part.get("type") != "text"), None)
        if other is not None:
            raise UserError(f"{self._name} reads text only: a message holds a part of type {other!r}")
        return "\n".join(part["text"] for part in content)


def chat_template(spec: ModelSpec, tokenizer: Any) -> Template | None:
    """None for a base model. Raises UserError for an instruct model whose tokenizer brings no template."""
    if spec.kind == "base":
        return None
    if not tokenizer.chat_template:
        raise UserError(f"{spec.name} brings no chat template: it is a base model, run it without --instruct")
    return Template(spec.name, tokenizer)
