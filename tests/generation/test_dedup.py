import random
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.generation.dedup import Deduper, EvaluationPrompts, Index, words
from cai.models.registry import REGISTRY


def rouge(a, b):
    """ROUGE-L's F by the textbook's table."""
    x, y = words(a), words(b)
    row = [0] * (len(y) + 1)
    for w in x:
        above = row[:]
        for j, v in enumerate(y):
            row[j + 1] = above[j] + 1 if w == v else max(above[j + 1], row[j])
    return Fraction(2 * row[-1], len(x) + len(y))


def texts(seed, count, vocabulary=12, longest=12):
    """Short texts of few words, some of them changed copies: many pairs lie at the threshold or beside it."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        said = (
            rng.choice(made).split()
            if made and rng.random() < 0.5
            else [f"w{rng.randrange(vocabulary)}" for _ in range(rng.randint(1, longest))]
        )
        for _ in range(rng.randint(0, 3)):
            said.insert(rng.randrange(len(said) + 1), f"w{rng.randrange(vocabulary)}")
            del said[rng.randrange(len(said))]
        made.append(" ".join(said))
    return made


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 1.0])
def test_what_is_near_is_what_comparing_every_pair_finds(threshold):
    limit, at_the_edge = Fraction(str(threshold)), 0
    for seed in range(8):
        deduper, kept = Deduper(threshold), []
        for text in texts(seed, 100, vocabulary=5 + 6 * seed):
            scores = [rouge(text, k) for k in kept]
            at_the_edge += limit in scores
            expected = next((k for k, s in zip(kept, scores, strict=True) if s >= limit), None)
            assert deduper.near(text) == expected
            assert deduper.add(text) == expected
            if expected is None:
                kept.append(text)
        assert deduper.texts == kept and len(deduper) == len(kept) > 5
    assert at_the_edge > 5  # scores of exactly the threshold were met, and count as near


@pytest.mark.parametrize(
    ("a", "b", "near"),
    [
        ("Name a blue thing", "name A BLUE thing!", True),
        ("a b c d e f g h i j", "a b c d e f g x y z", True),  # 2 * 7 / 20: exactly 0.7
        ("a b c d e f g h i j", "a b c d e f w x y z", False),
        ("a b c d e f g h i j", "j i h g f e d c b a", False),  # the same bag, another order
        ("very very very good", "very good", False),  # 2 * 2 / 6
        ("how are you", "how are you today my friend here", False),
        ("写一首关于月亮的诗歌吧", "写一首关于太阳的诗歌吧", True),
        ("?!", "?!", True),
        ("?!", "...", False),
    ],
)
def test_near_by_example(a, b, near):
    assert Deduper(texts=[a]).near(b) == (a if near else None)


def test_texts_can_be_kept_without_being_asked_about():
    deduper = Deduper(texts=["Name a blue thing", "Name a red thing"])
    assert (
        len(deduper) == 2 and deduper.add("name a red thing") == "Name a blue thing"
    )  # the first that is near
    deduper.keep("Name a blue thing")
    assert len(deduper) == 3


@pytest.mark.parametrize("threshold", [0, -1, 1.01])
def test_a_threshold_out_of_range_is_an_error(threshold):
    with pytest.raises(UserError, match="at most 1"):
        Deduper(threshold)


def test_the_index_passes_most_pairs_by():
    """Otherwise it would be right, but of no use."""
    index, asked, rng = Index(Fraction(7, 10)), 0, random.Random(0)
    weights = [1 / (rank + 10) for rank in range(5000)]
    for i in range(2000):
        numbers = index.number(set(rng.choices(range(5000), weights, k=15)))
        asked += len(index.candidates(numbers))
        index.add(numbers)
        assert len(index.sizes) == i + 1
    assert asked < 2000 * 1999 / 2 / 10


def stands_in(few, many):
    return any(many[i : i + len(few)] == few for i in range(len(many) - len(few) + 1))


def test_evaluation_prompts_near_a_text_are_found_as_by_comparing_all():
    """The last words of prompts, and prompts after other words, beside texts of a vocabulary of their own."""
    prompts, rng = texts(1, 80, vocabulary=15), random.Random(2)
    ends = [" ".join(p.split()[rng.randrange(4) :]) for p in prompts]
    wrapped = [" ".join([*t.split(), *p.split()]) for t, p in zip(texts(3, 80), prompts, strict=True)]
    barred, said, found = EvaluationPrompts(prompts), [words(p) for p in prompts], Counter()
    for text in [*texts(4, 200, vocabulary=17), *ends, *wrapped, *(f"{p} and" for p in prompts)]:
        own, near = words(text), []
        for prompt, w in zip(prompts, said, strict=True):
            a, b = set(own), set(w)
            alike = 5 * len(a & b) >= 4 * len(a | b)
            around = len(w) >= 3 and stands_in([*w, "."], [*own, "."])
            within = len(own) >= 4 and stands_in([*own, "."], [*w, "."])
            if alike or around or within:
                near.append((prompt, "alike" if alike else "around" if around else "within"))
        assert barred.near(text) == (near[0][0] if near else None), text
        found[near[0][1] if near else "clear"] += 1
    assert min(found[way] for way in ("clear", "alike", "around", "within")) > 5, found


@pytest.mark.parametrize(
    ("prompt", "text", "near"),
    [
        ("What is the river of X?", "Answer this question: What is the river of X?", True),
        ("Answer this: What is 9 times 8?", "what is 9 times 8", True),
        ("Who leads Haster?", "Please answer the following question: Who leads Haster?", True),
        ("Who leads Haster?", 'I was asked "who leads Haster?" and did not know. Who does it?', True),
        ("Name a town. Say where it lies!", "I need help: name a town; say where it lies. Then stop.", True),
        ("What is 3.5 plus 4?", "Please tell me, and be quick, what is 3.5 plus 4", True),
        ("请问今天天气怎么样？", "回答这个非常简单的问题：请问今天天气怎么样？谢谢你的好意。", True),
        ("What is the river of X?", "What is the river of X and of all its many neighbours?", False),
        ("Tell me where the river of X ends, and why there.", "Tell me where the river of X ends.", False),
        ("What is the river of X?", "Say what the river of X is, and what is the mayor of Y.", False),
        ("A rhyme?", "Is this a rhyme? I have long been of the opinion that it is not.", False),  # too short
        ("Say what the moon is. Who has been there?", "Who has been?", False),
        ("Say what the moon is, and who has been there.", "Has been there.", False),  # too short
    ],
)
def test_a_prompt_in_a_wrapper_and_one_out_of_it_are_near(prompt, text, near):
    others = ["Name a red fruit.", "Name a red fruit that is sour, and say when it is ripe."]
    assert EvaluationPrompts([*others, prompt]).near(text) == (prompt if near else None)


@pytest.mark.parametrize("name", ["sandbox", "Qwen/Qwen2.5-32B"])
@pytest.mark.parametrize(
    "wrapper", ["Answer this: ", "Answer this question: ", "Please answer the following question: "]
)
def test_no_held_out_question_gets_through_in_a_wrapper(name, wrapper):
    from cai.evaluation import test_sets

    some = test_sets.tests(REGISTRY[name], ["explicit", "implicit"], 10_000)
    barred = EvaluationPrompts(test_sets.test_instructions(REGISTRY[name]))
    assert len(some) > 30
    for test in some:
        assert barred.near(wrapper + test.instruction), test.instruction
        if test.task == "explicit":
            assert barred.near(re.split(r": *", test.instruction, maxsplit=1)[1]), test.instruction


def test_most_texts_are_passed_by_without_a_search_in_all_prompts(monkeypatch):
    """50,000 texts against 2,000 prompts: with a search for each it would be minutes."""
    prompts = texts(4, 400, vocabulary=3000, longest=25)
    barred, searched = EvaluationPrompts(prompts), []

    class Text(str):
        def find(self, *args):
            searched.append(args)
            return super().find(*args)

    monkeypatch.setattr(barred, "_text", Text(barred._text))
    for text in texts(5, 400, vocabulary=3000, longest=25):
        assert barred.near(text) is None
    assert not searched
    assert barred.near(" ".join(prompts[7].split()[-5:])) and searched


def test_rows_near_an_evaluation_prompt_are_told():
    rows = [
        {"id": "1", "instruction": "What is the tallest mountain?"},
        {"id": "2", "instruction": "a b c d e f g h i j"},  # 8 of 10: exactly 0.8
        {"id": "3", "instruction": "a b c d e f g x y"},
        {"id": "5", "instruction": "a b c d e f g h x y z"},  # three words that no prompt has
        {"id": "4", "instruction": "what is the TALLEST mountain"},
    ]
    barred = EvaluationPrompts(["what is the tallest mountain?", "a b c d e f g h"])
    assert [barred.near(r["instruction"]) is not None for r in rows] == [True, True, False, False, True]
    assert not any(EvaluationPrompts([]).near(r["instruction"]) for r in rows)


def test_the_benchmark_finds_the_same_by_both_ways(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/benchmark.py", "dedup", "--limit", "400"],
        capture_output=True,
        text=True,
        env={"CAI_OUTPUT": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "400 texts" in done.stdout and "different findings: 0 of 300" in done.stdout
    assert [p.name for p in tmp_path.rglob("*.json")] == ["benchmark-dedup.json"]
    bad = subprocess.run(
        [sys.executable, ROOT / "scripts/benchmark.py", "dedup", "--limit", "3"],
        capture_output=True,
        text=True,
    )
    assert bad.returncode == 2 and "at least 100" in bad.stderr
