"""All prompt text: for base models plain text that goes on, for instruct models their chat template.

A base model sees documents, never a conversation: a preamble, exemplars with a separator between them, plain
markers. The sandbox's corpus is written with these same functions, so its weights and these templates
belong together (tests/sandbox/test_sandbox_model.py checks the fingerprint).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.prompts.constitution import Principle
from cai.prompts.exemplars import ANSWERED, EDITED, JUDGED, Judged
from cai.prompts.markers import (
    ANSWER_PREAMBLE,
    BETTER,
    CHANGE,
    CRITIQUE,
    CRITIQUE_REQUEST,
    EDITOR_PREAMBLE,
    END_OF_TEXT,
    HELPFULNESS,
    INSTRUCTION,
    JUDGE_PREAMBLE,
    KEEP,
    LIST_PREAMBLE,
    PRINCIPLE,
    REASON,
    RESPONSE,
    RESPONSE_A,
    RESPONSE_B,
    REVISION,
    REVISION_REQUEST,
    SEPARATOR,
    refuse_chat_tokens,
)
from cai.prompts.training_format import training_completion, training_prompt


def answer_block(instruction: str, answer: str | None = None) -> str:
    return f"{INSTRUCTION} {instruction}\n{RESPONSE}" + ("" if answer is None else f" {answer}")


def critique_block(principle: Principle, critique: str | None = None, *, requests: bool) -> str:
    request = f"\n{CRITIQUE_REQUEST} {principle.critique_request}" if requests else ""
    text = "" if critique is None else f" {critique}"
    return f"{PRINCIPLE} {principle.principle}{request}\n{CRITIQUE}{text}"


def revision_block(principles: Sequence[Principle], revision: str | None = None, *, requests: bool) -> str:
    request = f"{REVISION_REQUEST} {' '.join(p.revision_request for p in principles)}\n" if requests else ""
    return f"{request}{REVISION}" + ("" if revision is None else f" {revision}")


@dataclass(frozen=True)
class Prompter:
    """Turns the loop's questions into prompt strings for one model.

    shots: exemplars before each prompt (a base model's; 0 for the sandbox). requests: whether the
    constitution's critique and revision requests are written out beside the principle. render: None for a
    base model; for an instruct model the tokenizer's chat template, messages -> str.
    """

    shots: int = 4
    requests: bool = True
    list_shots: int = 8
    render: Callable[[list[dict]], str] | None = None

    def instructions(self, examples: Sequence[str]) -> str:
        """A numbered list to continue; its last line is the number that the model fills."""
        assert len(examples) <= self.list_shots, f"{len(examples)} examples for a list of {self.list_shots}"
        numbered = [f"{i}. {e}" for i, e in enumerate(examples, 1)]
        listing = "\n".join([LIST_PREAMBLE, *numbered, f"{len(examples) + 1}."])
        if self.render is None:
            return refuse_chat_tokens(listing)
        return self._chat(
            "Continue this list with new instructions, as varied as these: one a line, "
            f"numbered, each complete in itself. Write nothing else.\n\n{listing}"
        )

    def answer(self, instruction: str) -> str:
        if self.render is not None:
            return self._chat(instruction)
        shots = [answer_block(e.instruction, e.answer) for e in self._first(ANSWERED)]
        return _document(ANSWER_PREAMBLE, shots, answer_block(instruction))

    def critique(self, instruction: str, answer: str, principle: Principle) -> str:
        block = answer_block(instruction, answer)
        if self.render is not None:
            return self._chat(
                "Below are an instruction and a response to it. Judge the response by one principle and by "
                f"nothing else: {principle.principle} {principle.critique_request}\n\n{block}\n\n"
                "Give your reasons in a few sentences that quote the response. Then end with exactly one of "
                f'these two sentences: "{CHANGE}" or "{KEEP}"'
            )
        open_page = f"{block}\n{critique_block(principle, requests=self.requests)}"
        return _document(EDITOR_PREAMBLE, self._edited(), open_page)

    def revision(self, instruction: str, answer: str, critiques: Sequence[tuple[Principle, str]]) -> str:
        """The answer is revised once, in view of all its critiques."""
        if self.render is not None:
            seen = "\n".join(critique_block(p, c, requests=False) for p, c in critiques)
            ask = " ".join(p.revision_request for p, _ in critiques)
            return self._chat(
                "Below are an instruction, a response to it, and what a critic found by each principle.\n\n"
                f"{answer_block(instruction, answer)}\n{seen}\n\n{ask} Keep what is good. If no critique "
                "asks for a change, repeat the response as it is. Write only the new response to the "
                "instruction, without a word about the critique or about having changed anything."
            )
        open_page = self._editor(instruction, answer, critiques)
        return _document(EDITOR_PREAMBLE, self._edited(), open_page)

    def judge(self, instruction: str, a: str, b: str, principle: Principle) -> str:
        """A comparison by one principle, up to the reason that the model gives first."""
        page = judge_block(instruction, a, b, principle.principle)
        if self.render is not None:
            return self._chat(
                f"{JUDGE_PREAMBLE}\n\n{page.removesuffix(REASON).rstrip()}\n\nFirst give your reason in a "
                "sentence or two that say what each response does. Then write on a line of its own "
                f'"{BETTER}" and one letter, A or B.'
            )
        return _document(JUDGE_PREAMBLE, [_judged(e) for e in self._first(JUDGED)], page)

    def better(self, judge_prompt: str, reason: str) -> str:
        """The same page with the reason filled in: its next word is A or B, to be read by log-probability."""
        if self.render is not None:
            return f"{judge_prompt}{reason}\n{BETTER}"
        return refuse_chat_tokens(f"{judge_prompt} {reason}\n{BETTER}")

    def verdict(self, critique_prompt: str, critique: str) -> str:
        """The same page with the critique filled in: its next sentence is a verdict, to be read by
        log-probability."""
        if self.render is not None:
            return f"{critique_prompt}{critique}"
        return refuse_chat_tokens(f"{critique_prompt} {critique}")

    def _editor(
        self,
        instruction: str,
        answer: str,
        critiques: Sequence[tuple[Principle, str]],
        revision: str | None = None,
    ) -> str:
        return "\n".join(
            [
                answer_block(instruction, answer),
                *(critique_block(p, c, requests=self.requests) for p, c in critiques),
                revision_block([p for p, _ in critiques], revision, requests=self.requests),
            ]
        )

    def _edited(self) -> list[str]:
        return [
            self._editor(e.instruction, e.answer, [(e.as_principle(), e.critique)], e.revision)
            for e in self._first(EDITED)
        ]

    def _first(self, exemplars: Sequence) -> Sequence:
        assert 0 <= self.shots <= len(exemplars), f"shots {self.shots}: there are {len(exemplars)} exemplars"
        return exemplars[: self.shots]

    def _chat(self, content: str) -> str:
        return self.render([{"role": "user", "content": content}])


def _document(preamble: str, exemplars: Sequence[str], open_page: str) -> str:
    """A base model's prompt: the exemplars, each with the separator below it, then the page to go on with."""
    ended = [f"{page}\n\n{SEPARATOR}" for page in exemplars]
    return refuse_chat_tokens("\n\n".join([preamble, *ended, open_page]))


def editor_document(
    instruction: str, answer: str, critiques: Sequence[tuple[Principle, str]], revision: str
) -> str:
    """One finished page of the editor's desk, as the sandbox's corpus has it: revision prompt and answer."""
    page = Prompter(shots=0, requests=False)._editor(instruction, answer, critiques, revision)
    return f"{EDITOR_PREAMBLE}\n\n{page}"


def judge_block(instruction: str, a: str, b: str, principle: str) -> str:
    return (
        f"{INSTRUCTION} {instruction}\n{RESPONSE_A} {a}\n{RESPONSE_B} {b}\n{PRINCIPLE} {principle}\n{REASON}"
    )


def _judged(e: Judged) -> str:
    return f"{judge_block(e.instruction, e.a, e.b, e.principle)} {e.reason}\n{BETTER} {e.better}"


def exemplar_texts() -> tuple[str, ...]:
    """Every text of the exemplars, each once: what a leak filter looks for. Some are single sentences that a
    model may rightly say by chance, so compare whole texts or long stretches, not a few words in common."""
    answered = [text for e in ANSWERED for text in (e.instruction, e.answer)]
    edited = [
        text
        for e in EDITED
        for text in (
            e.instruction,
            e.answer,
            e.principle,
            e.critique_request,
            e.critique,
            e.revision_request,
            e.revision,
        )
    ]
    judged = [text for e in JUDGED for text in (e.instruction, e.a, e.b, e.principle, e.reason)]
    return tuple(dict.fromkeys(answered + edited + judged))


def fingerprint() -> str:
    """A hash of every template that a model of shots 0 sees: tells whether shipped weights still fit them."""
    p = Principle("id", "title", "{principle}", "{critique_request}", "{revision_request}")
    zero = Prompter(shots=0, requests=False)
    texts = [
        zero.instructions(["{a}", "{b}"]),
        zero.answer("{instruction}"),
        zero.critique("{instruction}", "{answer}", p),
        zero.revision("{instruction}", "{answer}", [(p, "{critique}"), (p, "{critique}")]),
        zero.better(zero.judge("{instruction}", "{a}", "{b}", p), "{reason}"),
        HELPFULNESS,
        training_prompt("{instruction}") + training_completion("{answer}") + END_OF_TEXT,
        KEEP,
        CHANGE,
    ]
    return hash_texts(texts)


def hash_texts(texts: Sequence[str]) -> str:
    """16 hex digits that stand for a list of texts."""
    return hashlib.sha256("\x1e".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
