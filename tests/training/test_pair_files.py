"""pairs.jsonl as training reads it: plain texts; what is wrong with a row, or why there is none."""

import json
import shutil

import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT, directories, sha256_file
from cai.core.run import Run, read_manifest
from cai.core.schema import FORMAT, PAIR_KEYS, RECORD_KEYS, is_held_out
from cai.generation.pairs import FILE, keep_pairs
from cai.training.pair_files import apart_from, pair_rows, read_pairs, refuse_special_tokens, same_tokens
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
    (lambda r: r.update(prompt="<|endoftext|>"), "line 2: 'prompt' holds the special token <|endoftext|>"),
    (lambda r: r.update(rejected="<|im_end|>"), "line 2: 'rejected' holds the special token <|im_end|>"),
    (lambda r: r.update(kind="reversed"), "line 2: 'kind' is 'reversed': it can be 'revision' or 'anchor'"),
    (lambda r: r.update(task=[]), "line 2: 'task' is of type list"),
    (lambda r: r.update(prompt=r["prompt"] + " "), None),  # white space is folded in ids
    (lambda r: r.update(prompt="Another?"), "line 2: 'id' is not that of the prompt"),
    (lambda r: r.update(GOOD[0]), "line 2: the example and kind of line 1 once more"),
    (lambda r: r.update(GOOD[0] | {"id": "mine"}), "line 2: the texts of line 1 once more"),
    (lambda r: r.update(GOOD[0] | {"kind": "anchor", "chosen": "It is so."}), None),  # its anchor
])  # fmt: skip
def test_a_bad_pair_is_named_by_line_and_key(change, said, tmp_path):
    rows = [dict(r) for r in GOOD]
    change(rows[1])
    write(tmp_path, "pairs.jsonl", rows)
    if said is None:
        assert read_pairs(tmp_path)[0] == rows
    else:
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


# ---- the file that the run wrote ----

MANIFEST = {"format": FORMAT, "run": "r", "settings": {}}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The data directory of a run whose pairs were written by the pipeline."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    with Run.open("r", {}) as run:
        keep_pairs(run, GOOD)
    return run.data


def test_a_run_records_its_pairs_and_training_takes_them(written):
    found = read_manifest("r")["pairs"]
    assert (found["count"], found["held_out"]) == (2, 0) and found["sha256"] == sha256_file(written / FILE)
    assert read_pairs(written) == (GOOD, [])


@pytest.mark.parametrize("rows", [GOOD[:1], [GOOD[0] | {"chosen": "Mine."}, GOOD[1]], GOOD[::-1]])
def test_an_edited_file_is_refused_and_taken_on_purpose(written, rows):
    write(written, FILE, rows)
    said = says(written)
    assert f"is not the one that run 'r' wrote (2 pairs, now {len(rows)})" in said
    assert "--edited-pairs" in said and "under another run's name" in said
    assert read_pairs(written, edited=True) == (rows, [])
    write(written.with_name("mine"), FILE, rows)  # a copy without run.json
    assert read_pairs(written.with_name("mine")) == (rows, [])
    assert pair_rows(written, trained_on=sha256_file(written / FILE)) == rows
    with pytest.raises(UserError, match="is not the one that the adapter was trained on"):
        pair_rows(written, trained_on="0" * 64)


def test_where_only_the_count_was_recorded_it_is_compared_and_where_nothing_was_nothing(tmp_path):
    for pairs, fits in ((None, True), ({"count": 2}, True), ({"count": 3}, False)):
        (tmp_path / "run.json").unlink(missing_ok=True)
        write(tmp_path, FILE, GOOD)
        (tmp_path / "run.json").write_text(json.dumps(MANIFEST | ({"pairs": pairs} if pairs else {})))
        if fits:
            assert read_pairs(tmp_path) == (GOOD, [])
        else:
            assert "(3 pairs, now 2)" in says(tmp_path)


def test_a_lost_file_is_no_empty_one(written):
    (written / FILE).unlink()
    with pytest.raises(UserError, match=r"2 pairs, now 0"):
        pair_rows(written)


def test_a_side_that_is_not_the_ids_own_is_refused_where_the_run_has_a_share(tmp_path):
    """Held out by hash means: in every run on the same side."""
    rows = pairs_of_facts(60)
    for row in rows:
        row["held_out"] = is_held_out(row["id"], 0.25)
    write(tmp_path, FILE, rows)
    (tmp_path / "run.json").write_text(json.dumps(MANIFEST | {"settings": {"held_out": 0.25}}))
    sides = read_pairs(tmp_path)
    assert [len(side) for side in sides] == [sum(r["held_out"] is s for r in rows) for s in (False, True)]
    without = [{k: v for k, v in row.items() if k != "held_out"} for row in rows]
    write(tmp_path, FILE, without)  # by the run's share, not by the usual one
    assert [[r["id"] for r in side] for side in read_pairs(tmp_path)] == [[r["id"] for r in s] for s in sides]
    line = next(n for n, row in enumerate(rows) if row["held_out"])
    rows[line]["held_out"] = False
    write(tmp_path, FILE, rows)
    assert f"line {line + 1}: 'held_out' is false, by the id and the run's share of 0.25" in says(tmp_path)


# ---- inputs that trouble tools of this kind ----


def put(name, data):
    data.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tests/data/bug-inputs" / name, data / FILE)


def test_a_last_line_without_its_newline_is_a_pair(tmp_path):
    put("pairs-no-final-newline.jsonl", tmp_path)
    assert [r["prompt"] for r in read_pairs(tmp_path)[0]][2:] == ["What is two and two?"]


def test_half_a_last_line_is_refused_where_nothing_is_being_written(tmp_path):
    write(tmp_path, FILE, GOOD)
    with open(tmp_path / FILE, "a") as f:
        f.write('{"id": "x", "pro')
    assert "line 3: not JSON" in says(tmp_path)


def test_texts_that_are_the_same_tokens_are_told_apart_from_others(tmp_path, base):
    put("pairs-same-after-normalization.jsonl", tmp_path)
    [pair], _ = read_pairs(tmp_path)
    assert same_tokens(base.tokenizer, [pair, *GOOD]) == ([pair], GOOD)


def test_a_special_token_of_the_models_own_is_refused():
    class Tokenizer:
        all_special_tokens = ("</s>",)

    refuse_special_tokens(Tokenizer(), GOOD)
    with pytest.raises(UserError, match="'rejected' of pair x holds </s>, a special token of this model"):
        refuse_special_tokens(Tokenizer(), [*GOOD, GOOD[0] | {"id": "x", "rejected": "so </s>"}])


def test_pairs_on_evaluation_prompts_are_told_apart():
    asked = [GOOD[1]["prompt"].upper()]
    assert apart_from(GOOD, asked) == (GOOD[:1], GOOD[1:])
