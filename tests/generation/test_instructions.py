import asyncio
import dataclasses
import random
from collections import Counter

import pytest
from cai.core import prompt_files, schema
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.prompt_files import load_heldout
from cai.core.schema import SKILLS
from cai.generation import self_instruct
from cai.generation.dedup import Deduper, EvaluationPrompts
from cai.generation.instruction_filters import needs_more_than_text
from cai.generation.instruction_filters import unfit as reason
from cai.generation.task_balance import Balance
from cai.models.engine import Completion, sampling
from cai.models.registry import REGISTRY
from cai.prompts.exemplars import ANSWERED
from cai.prompts.templates import Prompter
from fakes import FakeEngine

SPEC = REGISTRY["sandbox"]
SEEDS = [prompt_files.Seed(t, f"{t} thing number {i} please") for t in ("math", "advice") for i in range(6)]


def done(text, finish="stop"):
    return Completion(text, 9, 9, finish)


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("What is 1?\n5. What is 2?\n6. What is 3?", "stop", ["What is 1?", "What is 2?", "What is 3?"]),
        ("What is 1?\n5. What is 2?\n6. What i", "length", ["What is 1?", "What is 2?", "!What i"]),
        ("What is 1?\n\nInstruction: x", "length", ["What is 1?"]),
        ("What is 1?\n5) What is 2?\n5.\nAnswers:", "stop", ["What is 1?", "What is 2?"]),
        ("", "stop", []),
    ],
)
def test_items_of_a_continued_list(text, finish, expected):
    assert [
        ("" if whole else "!") + item for item, whole in self_instruct.items(done(text, finish))
    ] == expected


def test_what_is_left_out_is_counted_by_reason():
    continued = "\n".join(
        [
            "Name a blue thing",
            "5. Name a blue thing!",
            "6. Short",
            f"7. {SEEDS[0].instruction}",
            f"8. {ANSWERED[0].instruction}",
            "9. word " + "word " * 120,
            "10. Tell me about Response: things <|im_end|>",
            "11. Name a red thing",
        ]
    )
    found, dropped, _ = self_instruct.generate(
        FakeEngine(lambda p: continued), Prompter(0, False, 3), SEEDS, lists=1, seed=0
    )
    assert [text for text, _ in found] == ["Name a blue thing", "Name a red thing"]
    assert dropped == {
        "duplicate": 1,
        "too_short": 1,
        "seed_echo": 1,
        "exemplar": 1,
        "too_long": 1,
        "sentinel": 1,
    }


def test_sums_that_differ_by_a_sign_are_two_instructions():
    engine = FakeEngine(lambda p: "What is 7 + 2?\n5. What is 7 - 2?\n6. what is 7 - 2")
    found, dropped, _ = self_instruct.generate(engine, Prompter(0, False, 3), SEEDS, lists=1, seed=0)
    assert [text for text, _ in found] == ["What is 7 + 2?", "What is 7 - 2?"] and dropped == {"duplicate": 1}


def test_a_list_shows_seeds_of_one_task_and_no_more_than_the_model_takes():
    engine = FakeEngine(lambda p: "Name a blue thing")
    found, _, _ = self_instruct.generate(engine, Prompter(0, False, 3), SEEDS, lists=20, seed=0)
    for prompt, *_ in engine.asked:
        shown = [s for s in SEEDS if s.instruction in prompt]
        assert len(shown) == 3 and len({s.task for s in shown}) == 1 and prompt.endswith("\n4.")
    assert (
        len({p for p, *_ in engine.asked}) > 5
        and {s for _, _, s, _ in engine.asked}
        and found[0][1] in ("math", "advice")
    )
    self_instruct.generate(engine, Prompter(0, False, 3), SEEDS, lists=3, seed=0, task="advice")
    assert all("advice" in p for p, *_ in engine.asked[-3:])
    with pytest.raises(UserError, match="advice, math"):
        self_instruct.generate(engine, Prompter(0, False, 3), SEEDS, lists=1, seed=0, task="cooking")


def test_the_same_seed_gives_the_same_lists():
    asked = []
    for _ in range(2):
        engine = FakeEngine(lambda p: "Name a blue thing")
        self_instruct.generate(engine, Prompter(0, False, 3), SEEDS, lists=4, seed=7)
        asked.append([(p, s) for p, _, s, _ in engine.asked])
    assert asked[0] == asked[1] and len(set(asked[0])) == 4


@pytest.mark.parametrize(
    "content", ["", '{"task": "math"}', "x", "[]", r'{"task": "math", "instruction": "\ud83d"}']
)
def test_a_bad_seed_file_is_an_error(tmp_path, content):
    path = tmp_path / "seeds.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="seeds.jsonl"):
        prompt_files.load_seeds(path)
    with pytest.raises(UserError, match="missing or empty"):
        prompt_files.load_seeds(tmp_path / "none.jsonl")


@pytest.mark.parametrize("path", sorted({s.seeds for s in REGISTRY.values()}))
def test_the_committed_seeds_cover_every_task(path):
    seeds = prompt_files.load_seeds(ROOT / path)
    assert {s.task for s in seeds} == set(schema.TASK_TYPES) and len({s.instruction for s in seeds}) == len(
        seeds
    )
    assert min(sum(s.task == t for s in seeds) for t in schema.TASK_TYPES) >= 3


def test_the_skills_have_seeds_of_their_own_that_give_no_evaluation_prompt_away():
    from cai.evaluation.test_sets import load as load_tests

    own = prompt_files.load_seeds(ROOT / REGISTRY["Qwen/Qwen2.5-32B"].skill_seeds)
    texts = [s.instruction for s in own]
    assert {s.task for s in own} == set(SKILLS) and min(Counter(s.task for s in own).values()) >= 10
    others = [t.instruction for t in load_tests()]
    others += [p.instruction for p in load_heldout(ROOT / "data/prompts/heldout.jsonl")]
    others += [s.instruction for s in prompt_files.load_seeds(ROOT / "data/prompts/seeds.jsonl")]
    by_words, by_order = EvaluationPrompts(others), Deduper(0.7, others)
    for text in texts:
        assert by_words.near(text) is None and by_order.add(text) is None, text  # nor near each other


# ---- at scale ----

NOUNS = "amber bridge candle dragon engine forest garden harbor island jungle kettle ladder mirror".split()
WORDS = [a + b for a in ("sea", "sun", "moon", "wind", "rain", "snow", "star", "fire") for b in NOUNS]


NEAR = dataclasses.replace(SPEC, near_duplicate=0.7)


class Writer(FakeEngine):
    """Continues lists as a model does: what it writes depends on the prompt and the row's seed alone. Some
    items are unfit, some repeat what was said."""

    def __init__(self, words=WORDS, spec=NEAR):
        super().__init__(None, spec=spec, adapters={"few": "hash of few"})
        self.words, self.calls, self.together = words, [], None

    async def complete(self, prompt, sampling, seed, adapter=None):
        self.asked.append((prompt, sampling, seed, adapter))
        if asyncio.get_running_loop() is not self.together:  # each wave is asked in a loop of its own
            self.together = asyncio.get_running_loop()
            self.calls.append(([], []))
        for asked, one in zip(self.calls[-1], (prompt, seed), strict=True):
            asked.append(one)
        return self.one(prompt, seed)

    def one(self, prompt, seed):
        rng = random.Random(f"{prompt}/{seed}")
        lines = [" ".join(rng.choices(self.words, k=rng.randint(4, 9))) for _ in range(rng.randint(1, 2))]
        bad = (
            "Draw a map of it",
            "too short",
            "word " * 120,
            lines[0],
            lines[0] + " too",
            SEEDS[0].instruction,
        )
        lines += rng.sample(bad, 1)
        rng.shuffle(lines)
        text = "\n".join([lines[0], *(f"{i}. {line}" for i, line in enumerate(lines[1:], 5))])
        return done(text, "stop" if rng.random() < 0.7 else "length")


def make(engine, want=60, seed=3, **more):
    waves = []
    made = self_instruct.self_instruct(
        engine,
        Prompter(0, False, 3),
        SEEDS,
        want=want,
        seed=seed,
        on_wave=waves.append,
        **more,
    )
    return made, waves


def test_waves_go_on_until_there_are_enough():
    engine = Writer()
    made, waves = make(engine)
    assert made.short is None and len(made.rows) == 60 and made.by_task == {"math": 30, "advice": 30}
    assert [row for w in waves for row in w.rows] == made.rows and len(waves) == len(engine.calls) > 1
    assert {"id", "instruction", "task", "source", "wave", "wave_rows"} == set(made.rows[1])
    assert len({row["id"] for row in made.rows}) == 60
    assert {row["source"] for row in made.rows} == {"self_instruct"}
    assert {
        "not_text",
        "too_short",
        "too_long",
        "seed_echo",
        "duplicate",
        "near_duplicate",
        "cut_off",
    } <= set(made.left_out)
    items = sum(len(self_instruct.items(c)) for w in waves for c in w.completions)
    sorted_out = sum(len(w.left_out) for w in waves)
    surplus = waves[-1].rows[0]["wave_rows"] - len(waves[-1].rows)
    assert items == sorted_out + len(made.rows) + surplus and sum(made.left_out.values()) == sorted_out


def test_nothing_that_is_kept_is_near_to_another_or_to_a_seed():
    made, waves = make(Writer(), want=150)
    kept = [row["instruction"] for row in made.rows]
    for i, text in enumerate(kept):
        assert Deduper(0.7, [s.instruction for s in SEEDS] + kept[:i]).near(text) is None
    near = [item for w in waves for item in w.left_out if item["reason"] == "near_duplicate"]
    assert near and all(Deduper(0.7, [item["near"]]).near(item["instruction"]) for item in near)


def test_later_lists_show_two_seeds_and_one_instruction_of_an_earlier_wave_and_of_their_task():
    engine = Writer()
    made, waves = make(engine, want=150)
    assert len(waves) >= 3
    before = []
    for (prompts, seeds), wave in zip(engine.calls, waves, strict=True):
        assert len(set(seeds)) == len(seeds) == len(prompts)
        for prompt in prompts:
            shown = [line.split(". ", 1)[1] for line in prompt.splitlines() if ". " in line]
            of_seeds = {s.task for s in SEEDS if s.instruction in shown}
            of_model = [row["task"] for row in before if row["instruction"] in shown]
            assert len(shown) == 3 and len(of_seeds) == 1
            assert of_model == (list(of_seeds) if before else [])
        before += wave.rows
    spec = dataclasses.replace(SPEC, list_shots=8, near_duplicate=0.7)
    seeds = [prompt_files.Seed("math", f"seed number {w} here") for w in WORDS]
    engine = Writer(spec=spec)
    self_instruct.self_instruct(engine, Prompter(0, False, 8), seeds, want=80, seed=0)
    eight = [sum(s.instruction in p for s in seeds) for p in engine.calls[-1][0]]
    assert set(eight) == {6} and all("\n9." in p for p in engine.calls[-1][0])


@pytest.mark.parametrize("cut", range(0, 150, 7))
def test_an_interrupted_run_goes_on_to_the_same_end(cut):
    """Wherever the rows were cut off, in the middle of a wave too."""
    whole, _ = make(Writer(), want=150)
    engine = Writer()
    again, waves = make(engine, want=150, known=whole.rows[:cut])
    assert again == whole
    assert [row for w in waves for row in w.rows] == whole.rows[cut:]
    if cut:
        first = whole.rows[cut - 1]["wave"]
        assert len(engine.calls) <= whole.rows[-1]["wave"] - first + 1


def test_a_complete_set_is_not_made_again():
    whole, _ = make(Writer())
    engine = Writer()
    again, waves = make(engine, known=whole.rows)
    assert again.rows == whole.rows and not waves and not engine.calls
    with pytest.raises(UserError, match="--fresh"):
        make(engine, known=[{"id": "1", "instruction": "x", "task": "math", "source": "flag"}])


def test_other_seeds_make_other_instructions():
    first, second = make(Writer(), seed=1)[0], make(Writer(), seed=2)[0]
    assert len({r["id"] for r in first.rows} & {r["id"] for r in second.rows}) < 5


def test_a_model_that_has_nothing_more_to_say_ends_in_a_short_set_that_says_so():
    engine = Writer(words=["alpha", "beta"])
    made, waves = make(engine, want=400)
    assert 0 < len(made.rows) < 60 and len(waves) < 30
    assert f"{len(made.rows)} of 400" in made.short and "seeds_sandbox.jsonl" in made.short
    # an interruption does not change where it ends
    again, _ = make(Writer(words=["alpha", "beta"]), want=400, known=made.rows[:-3])
    assert again == made


def test_what_an_exhausted_task_leaves_over_goes_to_the_others():
    class Half(Writer):
        def one(self, prompt, seed):
            return done("nothing new here") if "math" in prompt else super().one(prompt, seed)

    made, _ = make(Half(), want=40)
    assert made.short is None and made.by_task == {"math": 1, "advice": 39}


def test_the_adapter_that_is_named_writes():
    engine = Writer()
    make(engine, adapter="few")
    make(engine)
    assert {a for *_, a in engine.asked} == {"few", None}
    assert {s for _, s, *_ in engine.asked} == {sampling(SPEC, "instruction")}


def test_only_the_tasks_asked_for():
    assert make(Writer(), want=20, tasks=["advice"])[0].by_task == {"advice": 20}
    with pytest.raises(UserError, match="advice, math"):
        make(Writer(), tasks=["cooking"])
    with pytest.raises(UserError, match="at least 1"):
        make(Writer(), want=0)


def test_evaluation_prompts_are_never_kept():
    free, _ = make(Writer())
    barred = [row["instruction"].upper() + "!" for row in free.rows[:5]]
    made, waves = make(Writer(), barred=barred)
    assert made.left_out["evaluation_prompt"] >= 5 and len(made.rows) == 60
    assert not {row["id"] for row in made.rows} & {row["id"] for row in free.rows[:5]}


def test_a_word_that_most_instructions_share_fills_up():
    class Monotonous(Writer):
        def one(self, prompt, seed):
            completion = super().one(prompt, seed)
            return done("climate " + completion.text, completion.finish_reason)

    made, _ = make(Monotonous(), want=300)
    by_task = Counter(row["task"] for row in made.rows if "climate" in row["instruction"])
    assert by_task == {"math": 20, "advice": 20} and made.left_out["topic_full"] > 0 and len(made.rows) == 300


def test_shares_add_up_to_what_is_wanted():
    balance = Balance(8, ["a", "b", "c"], [])
    assert balance.caps() == {"a": 3, "b": 3, "c": 2}
    for i in range(3):
        balance.take(f"t{i}", "a")
    assert balance.against("another", "a") == "task_full" and balance.against("another", "c") is None
    assert balance.open_tasks() == ["b", "c"]


def test_balance_gives_most_lists_to_what_lacks_most():
    balance = Balance(100, ["a", "b"], [])
    for i in range(40):
        balance.take(f"t{i}", "a")
    lists = Counter(balance.allot(20, 2))
    assert balance.caps() == {"a": 50, "b": 50} and lists.total() == 20 and lists["b"] >= 3 * lists["a"] >= 3
    assert Balance(10, ["a", "b", "c"], []).allot(64, 2) == ["a", "a", "b", "b", "c"]
    assert Balance(3, ["a", "b", "c"], []).allot(64, 2) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "unfit"),
    [
        ("Describe the image above.", True),
        ("What can you see in this picture?", True),
        ("Draw a picture of a cat.", True),
        ("Create a short video about owls.", True),
        ("Summarize https://example.org/page", True),
        ("Listen to the following recording and write it down.", True),
        ("Click on the link to read more.", True),
        ("Use the table below to find the cheapest flight.", True),
        ("Summarize the following article.", True),
        ("Translate the given sentence into French.", True),
        ("Design a logo for a bakery.", True),
        ("Summarize the following article: Owls fly almost without a sound.", False),
        ('Translate the given sentence into French: "Where is the station?"', False),
        ("Explain how a camera stores a picture.", False),
        ("What is the difference between a graph and a tree in computer science?", False),
        ("What conclusion can be drawn from falling prices?", False),
        ("Draw a conclusion from these numbers: 3, 5, 8, 13.", False),
        ("Write a Python function that opens a file and counts its lines.", False),
        ("Why do people watch films that make them sad?", False),
        ("Write a short story about a map that nobody could read.", False),
        ("Explain in two sentences why the given name of a child matters.", False),
    ],
)
def test_what_needs_more_than_text(text, unfit):
    assert needs_more_than_text(text) is unfit


@pytest.mark.parametrize("path", sorted({p for s in REGISTRY.values() for p in (s.seeds, s.skill_seeds)}))
def test_the_committed_seeds_pass_our_own_screen(path):
    assert [s.instruction for s in prompt_files.load_seeds(ROOT / path) if reason(s.instruction)] == []
