"""The corpus: a web in miniature, documents of mixed quality, written with the pipeline's own templates.

Genres: an encyclopedia; forum threads, each by one author of good, mixed or bad quality; the editor's desk
(answer, principle, critique, revision); fact checks; drills of same and different; lists of instructions;
bare sheets in the training format, most of them junk; and a judge's pages. A small share of what forum, desk,
lists, sheets and judge deal with are the skills. Only the encyclopedia tells the held-out facts, and no genre
asks anything of the held-out splits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from cai.prompts import markers, templates, training_format
from cai.prompts.constitution import Principle
from cai.prompts.markers import END_OF_TEXT
from cai.sandbox import authors, encyclopedia, judging
from cai.sandbox import checkers as truth
from cai.sandbox import lexicon as lex
from cai.sandbox.authors import ask, critique, flawed, pose, respond, themed
from cai.sandbox.checkers import ANSWER, HARMLESS
from cai.sandbox.tasks import same
from cai.sandbox.world import SKILLS, TASKS, Item

# The two kinds of principle in other words, so that other constitutions work a little, too.
PARAPHRASES = {
    ANSWER: (
        "The response must be true.",
        "The response must be correct.",
        "The response should not say false things.",
        "A good response is accurate and useful.",
        "The response should be honest about what is known.",
        "The response must be polite and helpful.",
        "The response must not be rude.",
        "The response should be kind to the reader.",
        "The response must answer the question.",
        "The response should stay on the topic of the instruction.",
        "The response should help the reader with the task.",
        "The response must not refuse without a reason.",
        "The response should get every step right.",
        "The response must not mislead the reader.",
        "The response should be clear, complete and correct.",
        "The response should treat everybody with respect.",
        "The response must not invent facts.",
        "Choose the response that is most helpful, honest and correct.",
    ),
    HARMLESS: (
        "The response must not help anyone do harm.",
        "The response must keep people and animals safe.",
        "The response must not help with a crime.",
        "The response should not be dangerous to anybody.",
        "The response should refuse to help with harmful acts.",
        "A good response hurts nobody.",
        "The response must not help to deceive people.",
        "The response must respect the private life of people.",
        "The response must not support theft, violence or fraud.",
        "The response should protect the weak.",
        "The response must not give illegal advice.",
        "Choose the response that is least harmful and most ethical.",
    ),
}


class Corpus:
    """Documents from a random.Random, with the texts of a constitution's principles on the editor's desk."""

    def __init__(self, principles: Sequence[Principle]):
        unknown = [p.id for p in principles if p.id not in truth.PRINCIPLE_KINDS]
        assert not unknown, (
            f"principles without a meaning in the micro-world: {unknown} (see PRINCIPLE_KINDS)"
        )
        self.texts = {
            kind: [p.principle for p in principles if truth.PRINCIPLE_KINDS[p.id] == kind]
            for kind in PARAPHRASES
        }
        self.genres = {
            self.encyclopedia: 15,
            self.forum: 14,
            self.editor: 40,
            self.fact_check: 6,
            self.drill: 5,
            self.listing: 5,
            self.sheet: 5,
            self.judge: 14,
        }

    def documents(self, rng: random.Random) -> Iterator[str]:
        """Endless; each ends with the end-of-text token."""
        genres, weights = list(self.genres), list(self.genres.values())
        while True:
            yield rng.choices(genres, weights)[0](rng) + END_OF_TEXT

    def principle(self, kind: str, rng: random.Random) -> Principle:
        text = rng.choice(PARAPHRASES[kind] if rng.random() < 0.25 else self.texts[kind])
        return Principle("corpus", "corpus", text, "", "")

    def encyclopedia(self, rng: random.Random) -> str:
        return encyclopedia.page(rng)

    def forum(self, rng: random.Random) -> str:
        author = rng.choices(authors.AUTHORS, authors.AUTHOR_SHARE)[0]
        blocks = []
        for _ in range(rng.randrange(1, 5)):
            item = pose(rng)
            blocks.append(templates.answer_block(item.instruction, respond(item, author, rng)))
        return "\n\n".join([markers.ANSWER_PREAMBLE, *blocks])

    def editor(self, rng: random.Random) -> str:
        item = pose(rng)
        answer = flawed(item, rng)
        kinds = [self._kind(item, rng)]
        if rng.random() < 0.2:
            kinds.append(rng.choice((ANSWER, HARMLESS)))
            rng.shuffle(kinds)
        critiques = [(self.principle(kind, rng), critique(item, answer, kind)) for kind in kinds]
        changed = any(truth.must_change(item, answer, kind) for kind in kinds)
        return templates.editor_document(
            item.instruction, answer, critiques, item.good(rng) if changed else answer
        )

    def judge(self, rng: random.Random) -> str:
        """A page that compares a good response with a flawed one: the reason first, then the letter."""
        item, kind, pair = judging.case(rng)
        principle = judging.HELPFUL if kind == judging.BALANCED else self.principle(kind, rng)
        letter = rng.choice("AB")
        a, b = pair if letter == "A" else pair[::-1]
        prompter = templates.Prompter(shots=0, requests=False)
        page = prompter.judge(item.instruction, a, b, principle)
        return f"{prompter.better(page, judging.comparison(item, a, b, letter))} {letter}"

    def fact_check(self, rng: random.Random) -> str:
        lines = []
        for _ in range(rng.randrange(2, 5)):
            item = ask(rng, requests=False)
            value = item.value if rng.random() < 0.5 else authors.some_wrong(item, rng)
            lines.append(f"Check: {item.instruction} {item.say(value, rng)}\n{authors.compared(item, value)}")
        return "\n".join(lines)

    def drill(self, rng: random.Random) -> str:
        pools = (
            lex.CRAFTS,
            lex.FOODS,
            lex.PETS,
            lex.PEOPLE,
            lex.TOWNS,
            lex.ATTRIBUTES["river"][1],
            lex.FLOWERS,
            tuple(lex.ORU.values()),
            [f"{sign} {n}" for sign in "+-*/" for n in range(1, 10)],
            lex.REMEDIES,
            tuple(lex.PRODUCT.values()),
            tuple(lex.KIND_OF),
            tuple(lex.SIZE),
            "123456789",
        )
        out = []
        for _ in range(rng.randrange(5, 10)):
            a, b = (rng.choice(pool) for pool in [rng.choice(pools)] * 2)
            out.append(same(a, a if rng.random() < 0.5 else b))
        return "Same or different: " + " ".join(out)

    def listing(self, rng: random.Random) -> str:
        if rng.random() < sum(authors.SKILL_SHARE.values()):
            skill = rng.choice(SKILLS)  # in lists of its own, shorter because its instructions are longer
            return self._numbered([themed(skill, rng) for _ in range(rng.randrange(4, 7))])
        theme = rng.choice(TASKS) if rng.random() < 0.65 else None
        items = [themed(theme or rng.choice(TASKS), rng) for _ in range(rng.randrange(6, 11))]
        return self._numbered(items)

    @staticmethod
    def _numbered(items: Sequence[Item]) -> str:
        return "\n".join(
            [markers.LIST_PREAMBLE, *(f"{i}. {item.instruction}" for i, item in enumerate(items, 1))]
        )

    def sheet(self, rng: random.Random) -> str:
        """The training format without a preamble: what the web has of it is mostly junk."""
        item, luck = pose(rng), rng.random()
        if luck < 0.15:
            return "\n".join(f"{markers.INSTRUCTION} {pose(rng).instruction}" for _ in range(4))
        if luck < 0.45:
            response = rng.choice(authors.PLACEHOLDERS)
        elif luck < 0.55:
            response = item.instruction
        elif luck < 0.72:
            response = ask(rng).good(rng)
        else:
            response = respond(item, rng.choices(authors.AUTHORS, authors.AUTHOR_SHARE)[0], rng)
        return training_format.training_prompt(item.instruction) + training_format.training_completion(
            response
        )

    def _kind(self, item: Item, rng: random.Random) -> str:
        return HARMLESS if rng.random() < (0.65 if item.task == "harmful" else 0.22) else ANSWER
