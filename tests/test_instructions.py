import pytest
from cai import instructions as ins
from cai.engine import Completion
from cai.exemplars import ANSWERED
from cai.prompts import Prompter
from cai.registry import REGISTRY
from cai.run import ROOT, UserError
from fakes import FakeEngine

SPEC = REGISTRY["sandbox"]
SEEDS = [ins.Seed(t, f"{t} thing number {i} please") for t in ("math", "advice") for i in range(6)]


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
    assert [("" if whole else "!") + item for item, whole in ins.items(done(text, finish))] == expected


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
    found, dropped, _ = ins.generate(
        FakeEngine(lambda p: continued), Prompter(0, False, 3), SPEC, SEEDS, lists=1, seed=0
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
    found, dropped, _ = ins.generate(engine, Prompter(0, False, 3), SPEC, SEEDS, lists=1, seed=0)
    assert [text for text, _ in found] == ["What is 7 + 2?", "What is 7 - 2?"] and dropped == {"duplicate": 1}


def test_a_list_shows_seeds_of_one_task_and_no_more_than_the_model_takes():
    engine = FakeEngine(lambda p: "Name a blue thing")
    found, _, _ = ins.generate(engine, Prompter(0, False, 3), SPEC, SEEDS, lists=20, seed=0)
    for prompt, *_ in engine.asked:
        shown = [s for s in SEEDS if s.instruction in prompt]
        assert len(shown) == 3 and len({s.task for s in shown}) == 1 and prompt.endswith("\n4.")
    assert (
        len({p for p, *_ in engine.asked}) > 5
        and {s for _, _, s, _ in engine.asked}
        and found[0][1] in ("math", "advice")
    )
    ins.generate(engine, Prompter(0, False, 3), SPEC, SEEDS, lists=3, seed=0, task="advice")
    assert all("advice" in p for p, *_ in engine.asked[-3:])
    with pytest.raises(UserError, match="advice, math"):
        ins.generate(engine, Prompter(0, False, 3), SPEC, SEEDS, lists=1, seed=0, task="cooking")


def test_the_same_seed_gives_the_same_lists():
    asked = []
    for _ in range(2):
        engine = FakeEngine(lambda p: "Name a blue thing")
        ins.generate(engine, Prompter(0, False, 3), SPEC, SEEDS, lists=4, seed=7)
        asked.append([(p, s) for p, _, s, _ in engine.asked])
    assert asked[0] == asked[1] and len(set(asked[0])) == 4


@pytest.mark.parametrize("content", ["", '{"task": "math"}', "x", "[]"])
def test_a_bad_seed_file_is_an_error(tmp_path, content):
    path = tmp_path / "seeds.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="seeds.jsonl"):
        ins.load_seeds(path)
    with pytest.raises(UserError, match="cannot be read"):
        ins.load_seeds(tmp_path / "none.jsonl")


@pytest.mark.parametrize("path", sorted({s.seeds for s in REGISTRY.values()}))
def test_the_committed_seeds_cover_every_task(path):
    seeds = ins.load_seeds(ROOT / path)
    assert {s.task for s in seeds} == set(ins.TASKS) and len({s.instruction for s in seeds}) == len(seeds)
    assert min(sum(s.task == t for s in seeds) for t in ins.TASKS) >= 3
