"""An instruct model's own chat template, for its prompts alone: a base model never sees one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cai.core.errors import UserError
from cai.models.registry import ModelSpec


class Template:
    """See models.engine.ChatTemplate."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        self.special_tokens = sorted((t for t in tokens if len(t) > 1), key=len, reverse=True)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation so far, up to the reply's first token."""
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def chat_template(spec: ModelSpec, tokenizer: Any) -> Template | None:
    """None for a base model. Raises UserError for an instruct model whose tokenizer brings no template."""
    if spec.kind == "base":
        return None
    if not tokenizer.chat_template:
        raise UserError(f"{spec.name} brings no chat template: it is a base model, run it without --instruct")
    return Template(tokenizer)
