"""What generated tokens say: a text, cut at its end token or at its first stop string. The same for all
engines, so that no text depends on who generated its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cai.models.engine import EOS, Completion, Sampling
from cai.prompts.markers import CHAT_TOKENS


def end_tokens(tokenizer: Any, more: Iterable[int | None] = ()) -> list[int]:
    """The tokens that end a text: the model's own, and those of chat formats."""
    vocabulary = tokenizer.get_vocab()
    return sorted({tokenizer.eos_token_id, *more, *(vocabulary.get(token) for token in CHAT_TOKENS)} - {None})


def completion_of(
    tokenizer: Any, ends: Iterable[int], row: Sequence[int], prompt_tokens: int, sampling: Sampling
) -> Completion:
    """Rows that end early may be padded behind."""
    ends = {*ends, tokenizer.pad_token_id}
    end = next((k for k, token in enumerate(row) if token in ends), None)
    text = tokenizer.decode(row[:end], skip_special_tokens=True)
    stops = (*sampling.stop, *CHAT_TOKENS)  # even spelt in pieces: no later prompt may hold one
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        at, stop = min(found)
        return Completion(text[:at].strip(), len(row[:end]), prompt_tokens, "stop", stop)
    if end is not None:
        return Completion(text.strip(), end + 1, prompt_tokens, "stop", EOS)
    return Completion(text.strip(), len(row), prompt_tokens, "length")
