"""pairs.jsonl as training reads it: plain texts; what is wrong with a row, or why there is none."""

import json

import pytest
from cai.core.errors import UserError
from cai.core.files import directories
from cai.core.schema import FORMAT, PAIR_KEYS, RECORD_KEYS
from cai.training.pair_files import read_pairs
from pairs_of_facts import pairs_of_facts

GOOD = pairs_of_facts(2)
BOILERPLATE = "I really do hope that this answer helps you well today!"


def write(data, name, rows):
    data.mkdir(parents=True, exist_ok=True)
    (data / name).write_text("".join(json.dumps(r) + "\n" for r in rows))


def says(data):
    with pytest.raises(UserError) as caught:
        read_pairs(data)
    return str(caught.value)


def record(id, **more):
    """A record of nothing but what is said."""
    row = {k: (kind[0] if isinstance(kind, tuple) else kind)() for k, kind in RECORD_KEYS.items()}
    return row | {"id": id, "format": FORMAT, "preference_pair": None, "adapter": None} | more


def test_pairs_of_the_tests_fit_the_schema_and_are_plain():
    assert all(isinstance(r[k], kind) for r in GOOD for k, kind in PAIR_KEYS.items())
    assert not any(r[k].startswith((" ", "Instruction:")) for r in GOOD for k in ("prompt", "chosen"))


def test_sides_are_told_apart_by_the_row_or_by_its_content(tmp_path):
    rows = pairs_of_facts(3, held_out=2)
    del rows[0]["held_out"]
    rows[0]["id"] = "00000000"  # of those that are held out by hash
    write(tmp_path, "pairs.jsonl", rows)
    assert read_pairs(tmp_path) == (rows[1:3], [rows[0], *rows[3:]])


@pytest.mark.parametrize(("change", "said"), [
    (lambda r: r.pop("chosen"), "line 2: the key 'chosen' is missing"),
    (lambda r: r.update(rejected=3), "line 2: 'rejected' is of type int"),
    (lambda r: r.update(prompt="\n"), "line 2: 'prompt' is empty"),
    (lambda r: r.update(chosen=""), "line 2: 'chosen' is empty"),
    (lambda r: r.update(rejected="  "), "line 2: 'rejected' is empty"),
    (lambda r: r.update(rejected=r["chosen"]), "line 2: 'chosen' and 'rejected' are the same"),
    (lambda r: r.update(prompt="say <|im_start|>"), "line 2: a prompt holds the chat token <|im_start|>"),
    (lambda r: r.update(chosen="is <|endoftext|>"), "line 2: 'chosen' holds the special token <|endoftext|>"),
    (lambda r: r.update(rejected="is \ud83d"), "line 2: 'rejected' is not UTF-8"),
    (lambda r: r.update(held_out="no"), "line 2: 'held_out' is neither true nor false"),
    (lambda r: (r.pop("held_out"), r.update(id="my pair")), "line 2: 'id' is no content hash"),
])  # fmt: skip
def test_a_bad_pair_is_named_by_line_and_key(change, said, tmp_path):
    rows = [dict(r) for r in GOOD]
    change(rows[1])
    write(tmp_path, "pairs.jsonl", rows)
    assert said in says(tmp_path)


@pytest.mark.parametrize("run", ["mine", "plan/stage"])
def test_a_pair_in_the_training_format_names_the_command_that_converts_it(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    pair = GOOD[0]
    old = {"prompt": f"Instruction: {pair['prompt']}\nResponse:", "chosen": " " + pair["chosen"]}
    data = directories(run)[0]
    write(data, "pairs.jsonl", [pair | old])
    said = says(data)
    assert "line 1: 'prompt' is in the training format" in said
    assert f"python scripts/runs.py --convert {run} " in said


def test_no_pairs_says_which_filter_took_how_many(tmp_path):
    write(tmp_path, "pairs.jsonl", [])
    why = {"a": ["unchanged"], "b": ["unchanged", "cut_off"]}
    write(tmp_path, "records.jsonl", [record(i, rejected_because=w) for i, w in why.items()])
    said = says(tmp_path)
    assert "Of 2 records 0 were kept" in said and "unchanged 2, cut_off 1" in said


def test_boilerplate_that_only_the_whole_run_shows_is_among_the_reasons(tmp_path):
    """All are kept one by one; together they all end in the same sentence."""
    write(tmp_path, "pairs.jsonl", [])
    words = "amber basalt copper driftwood ebony flint".split()
    rows = [
        record(
            str(n), kept=True, instruction=word, initial_answer=f"A {word}.",
            revised_answer=f"It is {word}, and no other thing. {BOILERPLATE}",
        )
        for n, word in enumerate(words)
    ]  # fmt: skip
    write(tmp_path, "records.jsonl", rows)
    said = says(tmp_path)
    assert "Of 6 records 0 were kept" in said and "boilerplate 6" in said


def test_all_held_out_and_no_file(tmp_path):
    assert "pairs.jsonl is missing" in says(tmp_path)
    write(tmp_path, "pairs.jsonl", [r | {"held_out": True} for r in GOOD])
    assert "all 2 pairs are held out" in says(tmp_path)
