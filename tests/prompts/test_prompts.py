"""All prompt text by exact equality; no chat token for a base model; the exemplars; the seed instructions."""

import json
import re

import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.schema import TASK_TYPES
from cai.prompts import constitution, markers, templates, training_format
from cai.prompts.constitution import Principle
from cai.prompts.exemplars import ANSWERED, EDITED, JUDGED
from cai.prompts.templates import Prompter
from jinja2.sandbox import ImmutableSandboxedEnvironment

TASKS = set(TASK_TYPES)
KIND = Principle("kind", "Kindness", "The response should be kind.", "Is it kind?", "Make it kind.")
TRUE = Principle("true", "Truth", "The response should be true.", "Is it true?", "Make it true.")
ZERO = Prompter(shots=0, requests=False)  # how the sandbox is prompted
ONE = Prompter(shots=1, requests=True)
CHAT = Prompter(render=lambda messages: json.dumps(messages))


def asked(rendered):
    """The one user message that an instruct model gets."""
    (message,) = json.loads(rendered)
    assert message["role"] == "user"
    return message["content"]


# ---- base models, no exemplars: the sandbox's weights depend on every character of these ----


def test_zero_shot_list():
    assert ZERO.instructions(["Name a river.", "Add 2 and 3."]) == (
        "A list of varied instructions:\n1. Name a river.\n2. Add 2 and 3.\n3."
    )
    assert ZERO.instructions([]) == "A list of varied instructions:\n1."


def test_zero_shot_answer():
    assert ZERO.answer("Name a river.") == (
        "Each instruction below is followed by a response.\n\nInstruction: Name a river.\nResponse:"
    )


def test_zero_shot_critique():
    assert ZERO.critique("Name a river.", "The Alps.", KIND) == (
        "An editor checks each response against a principle and revises it.\n\n"
        "Instruction: Name a river.\nResponse: The Alps.\nPrinciple: The response should be kind.\nCritique:"
    )


def test_zero_shot_revision_with_one_principle():
    assert ZERO.revision("Name a river.", "The Alps.", [(KIND, "It is kind. No change is needed.")]) == (
        "An editor checks each response against a principle and revises it.\n\n"
        "Instruction: Name a river.\nResponse: The Alps.\nPrinciple: The response should be kind.\n"
        "Critique: It is kind. No change is needed.\nRevision:"
    )


def test_zero_shot_revision_with_two_principles():
    critiques = [(KIND, "It is kind."), (TRUE, "The Alps are hills.")]
    assert ZERO.revision("Name a river.", "The Alps.", critiques) == (
        "An editor checks each response against a principle and revises it.\n\n"
        "Instruction: Name a river.\nResponse: The Alps.\nPrinciple: The response should be kind.\n"
        "Critique: It is kind.\nPrinciple: The response should be true.\nCritique: The Alps are hills.\n"
        "Revision:"
    )


def test_editor_document_is_the_revision_prompt_and_its_answer():
    critiques = [(KIND, "It is kind."), (TRUE, "The Alps are hills.")]
    assert templates.editor_document("Name a river.", "The Alps.", critiques, "The Rhine.") == (
        ZERO.revision("Name a river.", "The Alps.", critiques) + " The Rhine."
    )


def test_critique_prompt_and_answer_begin_the_revision_prompt():
    opened = ZERO.critique("Name a river.", "The Alps.", KIND)
    assert ZERO.revision("Name a river.", "The Alps.", [(KIND, "Fine.")]) == opened + " Fine.\nRevision:"


def test_zero_shot_judge_swaps_the_responses_and_nothing_else():
    assert ZERO.judge("Name a river.", "The Alps.", "The Rhine.", TRUE) == (
        "An editor reads two responses and names the better one by a principle.\n\n"
        "Instruction: Name a river.\nResponse A: The Alps.\nResponse B: The Rhine.\n"
        "Principle: The response should be true.\nReason:"
    )
    assert ZERO.judge("Q", "B", "A", TRUE) == (
        "An editor reads two responses and names the better one by a principle.\n\n"
        "Instruction: Q\nResponse A: B\nResponse B: A\nPrinciple: The response should be true.\nReason:"
    )


def test_the_letter_is_asked_after_the_reason():
    page = ZERO.judge("Name a river.", "The Alps.", "The Rhine.", TRUE)
    assert ZERO.better(page, "The Alps are hills.") == page + " The Alps are hills.\nBetter response:"
    asked = CHAT.judge("Name a river.", "The Alps.", "The Rhine.", TRUE)
    assert CHAT.better(asked, "The Alps are hills.") == asked + "The Alps are hills.\nBetter response:"


def test_the_sandbox_was_trained_with_these_templates_and_principles():
    recipe = json.loads((ROOT / "models/sandbox/recipe.json").read_text(encoding="utf-8"))
    assert recipe["prompts"] == templates.fingerprint(), "templates and shipped weights no longer match"
    assert recipe["constitution"] == constitution.load(ROOT / "constitution.yaml").hash


# ---- base models, with exemplars ----


def test_one_shot_answer():
    shot = ANSWERED[0]
    assert ONE.answer("Name a river.") == (
        "Each instruction below is followed by a response.\n\n"
        f"Instruction: {shot.instruction}\nResponse: {shot.answer}\n\n[[[end of page]]]\n\n"
        "Instruction: Name a river.\nResponse:"
    )


def test_one_shot_judge():
    shot = JUDGED[0]
    assert ONE.judge("Name a river.", "The Alps.", "The Rhine.", TRUE) == (
        "An editor reads two responses and names the better one by a principle.\n\n"
        f"Instruction: {shot.instruction}\nResponse A: {shot.a}\nResponse B: {shot.b}\n"
        f"Principle: {shot.principle}\nReason: {shot.reason}\nBetter response: {shot.better}\n\n"
        "[[[end of page]]]\n\n"
        "Instruction: Name a river.\nResponse A: The Alps.\nResponse B: The Rhine.\n"
        "Principle: The response should be true.\nReason:"
    )


def shot_page():
    shot = EDITED[0]
    return (
        "An editor checks each response against a principle and revises it.\n\n"
        f"Instruction: {shot.instruction}\nResponse: {shot.answer}\nPrinciple: {shot.principle}\n"
        f"Critique request: {shot.critique_request}\nCritique: {shot.critique}\n"
        f"Revision request: {shot.revision_request}\nRevision: {shot.revision}\n\n"
        "[[[end of page]]]\n\n"
    )


def test_one_shot_critique():
    assert ONE.critique("Name a river.", "The Alps.", KIND) == shot_page() + (
        "Instruction: Name a river.\nResponse: The Alps.\nPrinciple: The response should be kind.\n"
        "Critique request: Is it kind?\nCritique:"
    )


def test_one_shot_revision_with_two_principles():
    assert ONE.revision("Name a river.", "The Alps.", [(KIND, "Yes."), (TRUE, "No.")]) == shot_page() + (
        "Instruction: Name a river.\nResponse: The Alps.\nPrinciple: The response should be kind.\n"
        "Critique request: Is it kind?\nCritique: Yes.\nPrinciple: The response should be true.\n"
        "Critique request: Is it true?\nCritique: No.\n"
        "Revision request: Make it kind. Make it true.\nRevision:"
    )


def test_shots_count_and_their_limits():
    for shots in range(len(EDITED) + 1):
        prompter = Prompter(shots=shots)
        for prompt in (
            prompter.answer("Q"),
            prompter.critique("Q", "A", KIND),
            prompter.revision("Q", "A", [(KIND, "C")]),
            *([prompter.judge("Q", "A", "B", KIND)] if shots <= len(JUDGED) else []),
        ):
            assert prompt.count("Instruction:") == shots + 1
            assert prompt.count(markers.SEPARATOR) == shots
    with pytest.raises(AssertionError, match=f"there are {len(JUDGED)}"):
        Prompter(shots=len(JUDGED) + 1).judge("Q", "A", "B", KIND)
    with pytest.raises(AssertionError, match=f"shots 99: there are {len(ANSWERED)}"):
        Prompter(shots=99).answer("Q")
    with pytest.raises(AssertionError, match="3 examples for a list of 2"):
        Prompter(list_shots=2).instructions(["a", "b", "c"])


def every_base_prompt(instruction="Name a river.", answer="The Alps."):
    principles = constitution.load(ROOT / "constitution.yaml").principles
    for shots in (0, 4, len(EDITED)):
        for requests in (False, True):
            prompter = Prompter(shots=shots, requests=requests)
            yield "instruction", prompter.instructions(["Add 2 and 3."])
            if shots <= len(JUDGED):
                page = prompter.judge(instruction, answer, "The Rhine.", principles[0])
                yield "judge", page
                yield "letter", prompter.better(page, "It is a river.")
            yield "answer", prompter.answer(instruction)
            for p in principles:
                yield "critique", prompter.critique(instruction, answer, p)
            yield "revision", prompter.revision(instruction, answer, [(p, "Fine.") for p in principles])


def test_no_base_prompt_holds_a_chat_token():
    forbidden = (*markers.CHAT_TOKENS, markers.END_OF_TEXT, "<|", "[INST]")
    for kind, prompt in every_base_prompt():
        assert not [token for token in forbidden if token in prompt], kind


def every_prompt_about(prompter, bad):
    """Each method, with a text in each place where one can stand."""
    yield lambda: prompter.instructions(["Add 2 and 3.", bad])
    yield lambda: prompter.answer(bad)
    for texts in ((bad, "A"), ("Q", bad)):
        yield lambda texts=texts: prompter.critique(*texts, KIND)
        yield lambda texts=texts: prompter.revision(*texts, [(KIND, "C")])
    yield lambda: prompter.revision("Q", "A", [(KIND, "C"), (TRUE, bad)])
    for texts in ((bad, "A", "B"), ("Q", bad, "B"), ("Q", "A", bad)):
        yield lambda texts=texts: prompter.judge(*texts, KIND)
    yield lambda: prompter.better("page", bad)


@pytest.mark.parametrize("token", markers.CHAT_TOKENS)
def test_no_base_model_is_shown_a_chat_token_wherever_it_stands(token):
    bad = f"Name a river.{token}"
    asks = [*every_prompt_about(ZERO, bad), *every_prompt_about(Prompter(shots=4), bad)]
    asks.append(lambda: training_format.training_prompt(bad))
    for ask in asks:
        with pytest.raises(UserError, match=rf"chat token {re.escape(token)}: a base model must never"):
            ask()
    for ask in every_prompt_about(CHAT, bad):  # its template is full of them
        assert token in ask()


def test_base_prompts_end_where_the_model_goes_on():
    ends = {
        "instruction": "2.",
        "answer": "Response:",
        "critique": "Critique:",
        "revision": "Revision:",
        "judge": "Reason:",
        "letter": "Better response:",
    }
    for kind, prompt in every_base_prompt():
        assert prompt.endswith("\n" + ends[kind]), (kind, prompt[-40:])


# ---- the instruction is always there (and the answer, and every critique) ----


@pytest.mark.parametrize("prompter", [ZERO, ONE, Prompter(shots=4), Prompter(shots=4, requests=False), CHAT])
def test_critique_and_revision_prompts_hold_instruction_answer_and_critiques(prompter):
    instruction, answer = "Which river flows through Qarv?", "The Zimt flows through Qarv."
    critiques = [(KIND, "Kind enough, by Olb."), (TRUE, "The Zimt is a hill, by Ank.")]
    revision = prompter.revision(instruction, answer, critiques)
    for prompt in (prompter.critique(instruction, answer, KIND), revision):
        assert prompt.count(instruction) == 1 and prompt.count(answer) == 1
    for principle, critique in critiques:
        assert revision.count(principle.principle) == 1 and revision.count(critique) == 1


# ---- instruct models ----


def test_chat_answer_is_the_instruction_alone():
    assert asked(CHAT.answer("Name a river.")) == "Name a river."


def test_chat_list():
    assert asked(CHAT.instructions(["Name a river."])) == (
        "Continue this list with new instructions, as varied as these: one a line, numbered, each complete "
        "in itself. Write nothing else.\n\nA list of varied instructions:\n1. Name a river.\n2."
    )


def test_chat_critique():
    assert asked(CHAT.critique("Name a river.", "The Alps.", TRUE)) == (
        "Below are an instruction and a response to it. Judge the response by one principle and by nothing "
        "else: The response should be true. Is it true?\n\n"
        "Instruction: Name a river.\nResponse: The Alps.\n\n"
        "Give your reasons in a few sentences that quote the response. Then end with exactly one of these "
        'two sentences: "The response must be changed." or "No change is needed."'
    )


def test_chat_revision_with_two_principles():
    assert asked(CHAT.revision("Name a river.", "The Alps.", [(KIND, "Yes."), (TRUE, "No.")])) == (
        "Below are an instruction, a response to it, and what a critic found by each principle.\n\n"
        "Instruction: Name a river.\nResponse: The Alps.\n"
        "Principle: The response should be kind.\nCritique: Yes.\n"
        "Principle: The response should be true.\nCritique: No.\n\nMake it kind. Make it true. Keep what is "
        "good. If no critique asks for a change, repeat the response as it is. Write only the new response "
        "to the instruction, without a word about the critique or about having changed anything."
    )


def test_chat_judge():
    assert asked(CHAT.judge("Name a river.", "The Alps.", "The Rhine.", TRUE)) == (
        "An editor reads two responses and names the better one by a principle.\n\n"
        "Instruction: Name a river.\nResponse A: The Alps.\nResponse B: The Rhine.\n"
        "Principle: The response should be true.\n\nFirst give your reason in a sentence or two that say "
        'what each response does. Then write on a line of its own "Better response:" and one letter, A or B.'
    )


# ---- the training format ----


def trained(instruction, answer):
    return (
        training_format.training_prompt(instruction)
        + training_format.training_completion(answer)
        + markers.END_OF_TEXT
    )


def test_training_format():
    text = trained("Name a river.", "The Rhine.")
    assert text == "Instruction: Name a river.\nResponse: The Rhine.<|endoftext|>"


@pytest.mark.parametrize("whitespace", [{}, {"trim_blocks": True, "lstrip_blocks": True}])  # both are in use
def test_chat_template_renders_the_training_format(whitespace):
    template = ImmutableSandboxedEnvironment(**whitespace).from_string(training_format.TRAINING_CHAT_TEMPLATE)
    first, second = ("Name a river.\nJust one.", "The Rhine."), ("And a hill?", "Snowdon.\n\nIn Wales.")
    turns = [
        {"role": role, "content": text}
        for pair in (first, second)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    assert template.render(messages=turns[:2]) == trained(*first)
    assert template.render(messages=turns) == trained(*first) + trained(*second)
    opened = template.render(messages=turns[:1], add_generation_prompt=True)
    assert opened == training_format.training_prompt(first[0])
    assert template.render(messages=turns[:3], add_generation_prompt=True) == (
        trained(*first) + training_format.training_prompt(second[0])
    )


# ---- stop strings ----


def test_a_verdict_is_asked_after_the_critique():
    page = ZERO.critique("Name a river.", "The Alps.", TRUE)
    assert ZERO.verdict(page, "The Alps are hills.") == page + " The Alps are hills."
    asked = CHAT.critique("Name a river.", "The Alps.", TRUE)
    assert CHAT.verdict(asked, "The Alps are hills.") == asked + "The Alps are hills."


def test_what_ends_a_text_of_a_model_with_exemplars():
    ends = {kind: markers.stop_strings(kind, shots=4) for kind in markers.STOPS}
    assert ends == {
        "instruction": (),
        "answer": ("[[[end of page]]]",),
        "critique": ("[[[end of page]]]", "\nRevision request:", "\nRevision:"),
        "revision": ("[[[end of page]]]",),
        "judge": ("[[[end of page]]]", "\nBetter response:"),
    }
    assert markers.stop_strings("answer", shots=4, bare=True) == ("\nInstruction:",)
    for bare in (False, True):
        assert markers.stop_strings("answer", shots=0, bare=bare) == markers.STOPS["answer"]
    chat = {kind: markers.stop_strings(kind, shots=4, instruct=True) for kind in markers.STOPS}
    assert {kind for kind, stops in chat.items() if stops} == {"judge"}, "an end token ends the others"


def test_stop_strings_are_few_and_begin_a_marker():
    for kind, stops in markers.STOPS.items():
        assert len(stops) <= 4, kind  # what one request to a server takes
        for stop in stops:
            assert stop.startswith("\n"), (kind, stop)
            assert any(("\n" + marker).startswith(stop) for marker in markers.MARKERS), (kind, stop)


def goes_on(kind, requests):
    """(what follows a 4-shot prompt where a document goes on in its form, the text that it should yield)."""
    four, five = Prompter(shots=4, requests=requests), Prompter(shots=5, requests=requests)
    if kind == "judge":
        page = JUDGED[4]
        principle = Principle("exemplar", "exemplar", page.principle, "-", "-")
        prompt, text = four.judge(page.instruction, page.a, page.b, principle), page.reason
        document = five.judge("Q", "A", "B", KIND)
    elif kind == "answer":
        prompt, document, text = four.answer(ANSWERED[4].instruction), five.answer("Q"), ANSWERED[4].answer
    else:
        page, principle = EDITED[4], EDITED[4].as_principle()
        document = five.critique("Q", "A", KIND)
        if kind == "critique":
            prompt, text = four.critique(page.instruction, page.answer, principle), page.critique
        else:
            critiques = [(principle, page.critique)]
            prompt, text = four.revision(page.instruction, page.answer, critiques), page.revision
    assert document.startswith(prompt)
    return document[len(prompt) :], text


@pytest.mark.parametrize("requests", [False, True])
@pytest.mark.parametrize("kind", ["answer", "critique", "revision", "judge"])
def test_stop_strings_end_a_text_at_the_next_marker(kind, requests):
    continuation, text = goes_on(kind, requests)
    stops = markers.stop_strings(kind, shots=4)
    end = min(continuation.find(stop) for stop in stops if stop in continuation)
    assert continuation[:end].strip() == text


# ---- exemplars ----


def test_exemplars_are_enough_and_whole():
    assert len(ANSWERED) >= 8 and len(EDITED) >= 6
    for text in templates.exemplar_texts():
        assert text == text.strip() and text.isprintable() or "\n" in text
    assert any("\n    " in e.answer for e in ANSWERED), "one with code on several lines"
    lengths = sorted(len(e.answer) for e in ANSWERED)
    assert lengths[-1] > 6 * lengths[0], "answers of one length teach that length"


def test_exemplar_texts_hold_every_text_once():
    texts = templates.exemplar_texts()
    assert len(texts) == len(set(texts))
    for exemplar in (*ANSWERED, *EDITED):
        assert set(vars(exemplar).values()) <= set(texts)
    for exemplar in JUDGED:
        assert {v for k, v in vars(exemplar).items() if k != "better"} <= set(texts)


def test_exemplars_hold_no_marker_stop_or_chat_token():
    for text in templates.exemplar_texts():
        bad = [
            t
            for t in (*markers.MARKERS, markers.SEPARATOR, "<|", *sum(markers.STOPS.values(), ()))
            if t in text
        ]
        assert not bad, (bad, text)


def test_every_critique_ends_in_one_verdict_and_the_revision_obeys_it():
    for e in EDITED:
        assert e.critique.endswith((markers.KEEP, markers.CHANGE)), e.instruction
        assert e.critique.count(markers.KEEP) + e.critique.count(markers.CHANGE) == 1, e.instruction
        assert (e.revision == e.answer) == e.critique.endswith(markers.KEEP), e.instruction
        # Reasons come before the verdict, and are about this response.
        named = [set(re.findall(r"\w{4,}", text)) for text in (e.critique, e.instruction + e.answer)]
        assert len(named[0] & named[1]) >= 2, e.instruction
    assert sum(e.critique.endswith(markers.KEEP) for e in EDITED) >= 2


def test_the_first_four_pages_hold_both_verdicts_a_refusal_and_an_answer_instead_of_a_refusal():
    first = EDITED[:4]
    assert {e.critique.endswith(markers.KEEP) for e in first} == {True, False}
    refuses = re.compile(r"I (won't|can't)|I'm sorry")
    assert any(refuses.search(e.revision) and not refuses.search(e.answer) for e in first)
    assert any(refuses.search(e.answer) and not refuses.search(e.revision) for e in first)


def test_judged_exemplars_name_both_responses_and_give_nothing_away_by_place_or_length():
    assert len(JUDGED) >= 4
    for some in (JUDGED[:4], JUDGED):
        assert sum(e.better == "A" for e in some) == len(some) / 2
    longer = ["A" if len(e.a) > len(e.b) else "B" for e in JUDGED[:4]]
    assert sum(letter == e.better for letter, e in zip(longer, JUDGED, strict=False)) == 2
    for e in JUDGED:
        assert "Response A " in e.reason and "Response B " in e.reason
        assert e.reason.endswith(f"So response {e.better} is better."), e.instruction
    refuses = re.compile(r"I won't|I can't")
    better = [(e.a, e.b) if e.better == "A" else (e.b, e.a) for e in JUDGED[:4]]
    assert sum(bool(refuses.search(good)) for good, _ in better) == 1
    assert sum(bool(refuses.search(bad)) for _, bad in better) == 1


def test_no_answered_exemplar_is_a_refusal():
    assert not [e for e in ANSWERED if re.search(r"\b(won't|can't|cannot help|sorry)\b", e.answer)]


def test_exemplars_repeat_neither_the_constitution_nor_the_seeds():
    principles = constitution.load(ROOT / "constitution.yaml").principles
    texts = {getattr(p, key) for p in principles for key in constitution.KEYS}
    texts |= {row["instruction"] for row in seeds()}
    assert not texts & set(templates.exemplar_texts())


# ---- the seeds of real models ----


def seeds():
    text = (ROOT / "data/prompts/seeds.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_seeds_are_single_distinct_lines_over_all_tasks():
    rows = seeds()
    assert len(rows) >= 60
    assert all(set(row) == {"task", "instruction"} for row in rows)
    assert {row["task"] for row in rows} == TASKS
    assert min(sum(row["task"] == task for row in rows) for task in TASKS) >= 5
    assert len({row["instruction"].lower() for row in rows}) == len(rows)
    for row in rows:
        text = row["instruction"]
        assert text == text.strip() and len(text.splitlines()) == 1 and len(text) <= 300, text
        assert not [t for t in ("<|", *markers.MARKERS) if t in text], text
    assert {row["task"] for row in rows[:10]} == TASKS, "the first few are mixed too"
