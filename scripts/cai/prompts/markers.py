"""The words between which texts stand: plain-text markers, verdict sentences, stop strings.

The sandbox's corpus is written with them: to change one is to build the sandbox anew."""

from __future__ import annotations

from cai.core.errors import UserError

END_OF_TEXT = "<|endoftext|>"
INSTRUCTION, RESPONSE = "Instruction:", "Response:"
PRINCIPLE, CRITIQUE, REVISION = "Principle:", "Critique:", "Revision:"
CRITIQUE_REQUEST, REVISION_REQUEST = "Critique request:", "Revision request:"
LIST_PREAMBLE = "A list of varied instructions:"
ANSWER_PREAMBLE = "Each instruction below is followed by a response."
EDITOR_PREAMBLE = "An editor checks each response against a principle and revises it."
JUDGE_PREAMBLE = "An editor reads two responses and names the better one by a principle."
RESPONSE_A, RESPONSE_B, REASON, BETTER = "Response A:", "Response B:", "Reason:", "Better response:"

# What no text of a constitution or an exemplar may hold.
MARKERS = (
    *(INSTRUCTION, RESPONSE, PRINCIPLE, CRITIQUE, REVISION, CRITIQUE_REQUEST, REVISION_REQUEST),
    *(RESPONSE_A, RESPONSE_B, REASON, BETTER),
)

# What a judge is asked beside a pair's own principle, so that no virtue is paid for with usefulness. A
# refusal of a harmful request does not lose by it.
HELPFULNESS = "The response should be as helpful as it can be without helping anybody to do harm."

# The last sentence of every critique is its verdict. It is written out so that a program can read it.
KEEP = "No change is needed."
CHANGE = "The response must be changed."

# Between the exemplars of a base model's prompt, so that the model writes it at its own text's end. Plain
# ASCII, no Markdown, and nothing that a document holds.
SEPARATOR = "[[[end of page]]]"

# Where a text of a model without exemplars ends: where the next marker begins. At most four: what one vLLM
# request takes. Those of two words, and those that have a request beside them, end it by their first.
_NEXT = tuple(f"\n{marker}" for marker in (INSTRUCTION, PRINCIPLE))
_CRITIQUE, _REVISION, _RESPONSE = (f"\n{m.removesuffix(':')}" for m in (CRITIQUE, REVISION, RESPONSE))
STOPS: dict[str, tuple[str, ...]] = {
    "instruction": (),
    "answer": (*_NEXT, _CRITIQUE, f"\n{RESPONSE}"),
    "critique": (*_NEXT, _REVISION, _CRITIQUE),
    "revision": (*_NEXT, _REVISION, _CRITIQUE),
    "judge": (f"\n{BETTER.removesuffix(':')}", *_NEXT, _RESPONSE),
}

# What comes next on the same page, where the text is not the page's last.
_SAME_PAGE: dict[str, tuple[str, ...]] = {
    "critique": (f"\n{REVISION_REQUEST}", f"\n{REVISION}"),
    "judge": (f"\n{BETTER}",),
}


def stop_strings(purpose: str, *, shots: int, instruct: bool = False, bare: bool = False) -> tuple[str, ...]:
    """What ends a text of a purpose.

    A model with exemplars ends it by the separator, which no legitimate text holds; a marker at a line's
    start may stand in one. An instruct model ends by its own token. bare: an answer in the training format,
    which has no separator: an adapter has learned the end token, and one that has not goes on with an
    instruction of its own."""
    if instruct:
        return _SAME_PAGE[purpose] if purpose == "judge" else ()
    if not shots or purpose == "instruction":
        return STOPS[purpose]
    return (f"\n{INSTRUCTION}",) if bare else (SEPARATOR, *_SAME_PAGE.get(purpose, ()))


# Tokens of chat formats (ChatML, Llama 3). A base model that is shown one acts like a tuned one, which voids
# the experiment.
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def refuse_chat_tokens(prompt: str) -> str:
    """A base model's prompt, if it holds no token of a chat format. Raises UserError for one that does."""
    for token in CHAT_TOKENS:
        if token in prompt:
            raise UserError(
                f"a prompt holds the chat token {token}: "
                "a base model must never see one, it would act like a tuned model; "
                "remove it from the instruction"
            )
    return prompt
