import random
import subprocess
import sys
from fractions import Fraction

import pytest
from cai.dedupe import Deduper, EvaluationPrompts, Index, words
from cai.run import ROOT, UserError


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


def test_evaluation_prompts_near_a_text_are_found_as_by_comparing_all():
    prompts = texts(1, 80, vocabulary=15)
    barred, found = EvaluationPrompts(prompts), 0
    for text in [*texts(2, 200, vocabulary=17), *prompts[:20]]:
        bag = set(words(text))
        sets = [set(words(p)) for p in prompts]
        near = [5 * len(bag & s) >= 4 * len(bag | s) for s in sets]
        expected = prompts[near.index(True)] if any(near) else None
        assert barred.near(text) == expected
        found += expected is not None
    assert 20 < found < 200


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
        [sys.executable, ROOT / "scripts/benchmark_dedupe.py", "--limit", "400"],
        capture_output=True,
        text=True,
        env={"CAI_OUTPUT": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "400 texts" in done.stdout and "different findings: 0 of 300" in done.stdout
    assert [p.name for p in tmp_path.rglob("*.json")] == ["benchmark-dedupe.json"]
    bad = subprocess.run(
        [sys.executable, ROOT / "scripts/benchmark_dedupe.py", "--limit", "3"], capture_output=True, text=True
    )
    assert bad.returncode == 2 and "at least 100" in bad.stderr
