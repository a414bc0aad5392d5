import csv
import gzip
import hashlib
import json

import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.prompt_files import load_heldout
from cai.core.schema import content_id
from cai.generation import prompt_sources
from cai.generation.row_forms import first_turn
from cai.models.registry import REGISTRY

BENCHMARKS = ROOT.parent / "shared" / "benchmarks"
AILUMINATE = "ailuminate/airr_official_1.0_demo_en_us_prompt_set_release.csv"
HARMBENCH = "harmbench/harmbench_behaviors_text_all.csv"
HH_RLHF = "hh-rlhf/harmless-base_test.jsonl.gz"


def real(name):
    path = BENCHMARKS / name
    if not path.is_file():
        pytest.skip(f"the benchmark file {name} is not beside this checkout")
    return path


def digest(text):
    """The texts of benchmarks are compared by hash, so that no failure prints them."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(autouse=True)
def nothing_read_yet():
    prompt_sources._read.cache_clear()


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def jsonl(*rows):
    return "".join(json.dumps(r) + "\n" for r in rows)


def test_ailuminates_real_file():
    rows, loaded = rows_of(real(AILUMINATE)), prompt_sources.load(str(real(AILUMINATE)))
    assert len(loaded) == len(rows) == 1200 and loaded.left_out == {}
    same = [digest(i.instruction) == digest(r["prompt_text"]) for i, r in zip(loaded, rows, strict=True)]
    assert all(same)
    assert {i.source for i in loaded} == {f"ailuminate:{AILUMINATE.split('/')[1]}"}
    assert len(prompt_sources.load(str(real(AILUMINATE)), limit=7)) == 7


def test_harmbenchs_real_file_has_the_context_in_the_prompt():
    rows, loaded = rows_of(real(HARMBENCH)), prompt_sources.load(str(real(HARMBENCH)))
    assert len(loaded) == len(rows) == 400 and loaded.left_out == {}
    expected = [r["ContextString"] + "\n\n---\n\n" * bool(r["ContextString"]) + r["Behavior"] for r in rows]
    same = [digest(i.instruction) == digest(e) for i, e in zip(loaded, expected, strict=True)]
    assert all(same) and sum("\n\n---\n\n" in i.instruction for i in loaded) == 100
    assert {i.source.split(":")[0] for i in loaded} == {"harmbench"}


def test_hh_rlhfs_real_file_gives_the_first_human_turns():
    loaded = prompt_sources.load(str(real(HH_RLHF)))
    with gzip.open(real(HH_RLHF), "rt", encoding="utf-8") as f:
        chosen = [json.loads(line)["chosen"] for line in f]
    turns = [c.split("\n\nHuman:")[1].split("\n\nAssistant:")[0] for c in chosen]
    assert len(loaded) + sum(loaded.left_out.values()) == len(chosen) == 2312
    expected = list(dict.fromkeys(content_id(t) for t in turns))
    assert ([i.id for i in loaded] == expected) is True and loaded.left_out == {"duplicate": 134}
    assert sum("Assistant:" in i.instruction for i in loaded) == 0


def test_jsonl_with_any_of_the_three_keys(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        "\ufeff"
        + jsonl(
            {"instruction": "Say one", "task": "advice", "prompt": "not me"},
            {"prompt": " Say two\n", "task": "cooking"},
            {"question": "Say three", "task": 3},
        )
        + "\n",
    )
    loaded = prompt_sources.load(path)
    assert [(i.instruction, i.task, i.source) for i in loaded] == [
        ("Say one", "advice", "jsonl:mine.jsonl"),
        ("Say two", "unknown", "jsonl:mine.jsonl"),
        ("Say three", "unknown", "jsonl:mine.jsonl"),
    ]
    first = loaded[0].row()
    assert first["id"] == content_id("Say one") and set(first) == {"id", "instruction", "task", "source"}


def test_what_cannot_be_used_is_left_out_by_name(tmp_path):
    lines = [
        "Say one",
        "<|im_start|>user Say two",
        "Say three<|endoftext|>",
        "Response: four",
        "?!",
        "x" * (prompt_sources.MAX_CHARACTERS + 1),
        "Say  one",
        "Say \ud83d six",
        "Say five",
    ]
    loaded = prompt_sources.load(write(tmp_path / "p.jsonl", jsonl(*({"prompt": x} for x in lines))))
    assert [i.instruction for i in loaded] == ["Say one", "Say five"]
    assert loaded.left_out == {
        **{"chat_token": 2, "marker": 1, "empty": 1, "too_long": 1, "duplicate": 1, "not_utf8": 1}
    }
    assert (
        len(
            prompt_sources.load(
                write(tmp_path / "p.jsonl", jsonl({"prompt": "x" * prompt_sources.MAX_CHARACTERS}))
            )
        )
        == 1
    )


def test_a_limit_takes_a_sample_by_the_seed_whatever_the_order_of_the_rows(tmp_path):
    texts = [f"Name thing {i:02}" for i in range(40)]  # as sorted as real files are

    def sample(limit, seed, texts=texts):
        path = write(tmp_path / "p.jsonl", jsonl(*({"prompt": t} for t in [*texts, "Name  thing 07", "?"])))
        loaded = prompt_sources.load(path, limit, seed=seed)
        assert loaded.usable == 40 and loaded.left_out == {"duplicate": 1, "empty": 1}  # of the whole source
        return [i.instruction for i in loaded]

    ten = sample(10, 3)
    assert ten != texts[:10] and ten != sorted(ten) and len(set(ten)) == 10
    assert sample(25, 3)[:10] == ten  # a run that asks for more goes on with the rows that it has
    assert sample(10, 3, texts[::-1]) == ten != sample(10, 4)
    whole = sample(100, 3)
    assert whole[:25] == sample(25, 3) and sorted(whole) == texts == sample(None, 3)


def test_a_source_is_checked_to_its_end(tmp_path):
    path = write(tmp_path / "p.jsonl.gz", jsonl({"prompt": "one"}, {"prompt": "two"}) + "x")
    for read in (
        lambda path: prompt_sources.check(path, SANDBOX),
        lambda path: prompt_sources.load(path, limit=1),
    ):
        with pytest.raises(UserError, match="line 3: not JSON"):
            read(path)
    with pytest.raises(UserError, match="at least 1"):
        prompt_sources.load(path, limit=0)


def test_evaluation_prompts_are_left_out_and_do_not_count_towards_the_limit(tmp_path):
    path = write(tmp_path / "p.txt", "Who was first?\nName one two three four five six seven\nName two")
    loaded = prompt_sources.load(path, 2, barred=["who was FIRST", "name one two three four five six eight"])
    assert {i.instruction for i in loaded} == {"Name one two three four five six seven", "Name two"}
    loaded = prompt_sources.load(path, 2, barred=["who was FIRST", "name one two three four five six"])
    assert [i.instruction for i in loaded] == ["Name two"] and loaded.left_out == {"evaluation_prompt": 2}


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_plain_lines(tmp_path, ending):
    path = write(tmp_path / f"p{ending}", "Say one\r\n\n  \nSay two")
    assert [(i.instruction, i.source) for i in prompt_sources.load(path)] == [
        ("Say one", f"txt:p{ending}"),
        ("Say two", f"txt:p{ending}"),
    ]


def test_csv_with_quotes_and_line_breaks(tmp_path):
    loaded = prompt_sources.load(
        write(tmp_path / "p.csv", '\ufeffid,prompt\r\n1,"Say ""one"",\r\nplease"\r\n2,Say two\r\n')
    )
    assert [i.instruction for i in loaded] == ['Say "one",\r\nplease', "Say two"]


@pytest.mark.parametrize(
    ("transcript", "turn"),
    [
        ("\n\nHuman: Say one\n\nAssistant: one\n\nHuman: two\n\nAssistant: two", "Say one"),
        ("\n\nHuman: Say one\n\nin two parts\n\nAssistant: one", "Say one\n\nin two parts"),
        ("\n\nHuman: What does Assistant: mean?\n\nAssistant: me", "What does Assistant: mean?"),
        ("\n\nHuman: Say one", "Say one"),
        ("\r\n\r\nHuman: Say one\r\n\r\nAssistant: one", "Say one"),
        ("Assistant: hello\n\nHuman: Say one", None),
    ],
)
def test_the_first_turn_of_a_transcript(transcript, turn):
    assert first_turn(transcript) == turn


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": }\n', "p.jsonl, line 2: not JSON"),
        ("p.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("p.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}\n', "line 1: 'prompt' is there twice"),
        (
            "p.jsonl",
            '{"Behavior": null, "BehaviorID": "x", "ContextString": "c"}',
            "no usable prompt .empty 1",
        ),
        ("p.jsonl", '{"Behavior": "a", "BehaviorID": "x", "ContextString": 5}', "is of type int"),
        ("p.csv", "prompt,prompt\na,b\n", "the header: 'prompt' is there twice"),
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', r"line 2: has none of the keys .*\(it has text\)"),
        ("p.jsonl", '{"prompt": ["a"]}\n', "line 1: the prompt is of type list"),
        ("p.jsonl", '{"chosen": "x", "rejected": "y"}\n', 'line 1: `chosen` does not begin with "Human:"'),
        ("p.jsonl", '{"chosen": 1, "rejected": "y"}\n', "line 1: the prompt is of type int"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2: not UTF-8"),
        ("p.jsonl", "", "it is empty"),
        ("p.jsonl", '{"prompt": " "}\n', "no usable prompt .empty 1"),
        ("p.csv", "id,text\n1,a\n", "row 2 .*none of the keys"),
        ("p.csv", "id,prompt\n1,a\n2\n", "row 3 .*has fewer fields than the header's 2"),
        ("p.csv", "id,prompt\n1,a,b\n", "row 2 .*has more fields"),
        ("p.csv", 'id,prompt\n1,"a" b\n', "row 2: not CSV"),
        ("p.txt.gz", None, "not a whole gzip file"),
        ("p.parquet", "x", "must end in .jsonl, .csv, .tsv or .txt"),
    ],
)
def test_bad_files_are_errors_with_file_and_row(tmp_path, name, content, message):
    path = tmp_path / name
    if content is None:
        path.write_bytes(gzip.compress(b"Say one\n" * 1000)[:-12])
    else:
        write(path, content)
    with pytest.raises(UserError, match=message) as error:
        prompt_sources.load(str(path))
    assert name in str(error.value)


def test_files_that_are_too_large_are_not_read_to_the_end(tmp_path, monkeypatch):
    bomb = write(tmp_path / "p.txt.gz", b"a" * 3_000_000)
    with pytest.raises(UserError, match="line 1: longer than 1048576 bytes"):
        prompt_sources.load(bomb)
    many = write(tmp_path / "q.txt.gz", "\n".join(f"line {i}" for i in range(1000)))
    assert len(prompt_sources.load(many)) == 1000
    monkeypatch.setattr(prompt_sources, "MAX_BYTES", 1000)
    prompt_sources._read.cache_clear()
    with pytest.raises(UserError, match="more than 1000 bytes unpacked"):
        prompt_sources.load(many)


@pytest.mark.parametrize("source", ["none.jsonl", "nobody", "./nobody:train", "a/b/c/d:train", ""])
def test_a_source_that_is_nothing_is_an_error(source):
    with pytest.raises(UserError, match="neither a file .* nor a dataset with its split"):
        prompt_sources.load(source)


def test_a_saved_dataset_and_a_directory_of_data_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(
        [{"prompt": "Say one", "task": "math"}, {"prompt": "Say two", "task": None}]
    )
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "saved")
    rows.save_to_disk(tmp_path / "single")
    (tmp_path / "files").mkdir()
    write(tmp_path / "files/train.jsonl", jsonl({"question": "Say three"}, {"prompt": "Say four"}))
    for name, texts in (("saved", ["one", "two"]), ("single", ["one", "two"]), ("files", ["three", "four"])):
        loaded = prompt_sources.load(f"{tmp_path}/{name}:train")
        assert [i.instruction for i in loaded] == [f"Say {t}" for t in texts]
        assert {i.source for i in loaded} == {f"datasets:{name}:train"}
    assert [i.task for i in prompt_sources.load(f"{tmp_path}/saved:train")] == ["math", "unknown"]
    with pytest.raises(UserError, match="no such split; there are train"):
        prompt_sources.load(f"{tmp_path}/saved:test")
    with pytest.raises(UserError, match="files:test cannot be loaded"):
        prompt_sources.load(f"{tmp_path}/files:test")
    with pytest.raises(UserError, match="write the split .*saved:train"):
        prompt_sources.load(f"{tmp_path}/saved")


def test_a_dataset_of_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*args, **more):
        asked.append((args, more))
        if args[0] == "some/gone":
            raise ConnectionError("Couldn't reach the hub\nretrying")
        return [{"question": "Say one"}, {"question": 7 if args[0] == "some/thing" else "Say two"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    one, two = prompt_sources.load("openai/gsm8k/main:train[:100]")
    assert one.source == "datasets:openai/gsm8k/main:train[:100]"
    assert asked == [(("openai/gsm8k", "main"), {"split": "train[:100]"})]  # and no remote code, ever
    with pytest.raises(UserError, match="some/thing:test, row 1: the prompt is of type int"):
        prompt_sources.load("some/thing:test")
    with pytest.raises(
        UserError, match="some/gone:train cannot be loaded .Couldn't reach the hub.*network"
    ) as e:
        prompt_sources.load("some/gone:train")
    assert "\n" not in str(e.value)


# ---- files that trouble tools of this kind ----


SANDBOX = REGISTRY["sandbox"]
INPUTS = ROOT / "tests/data/bug-inputs"
TASK = "Say whether this is glad or sad."
EGG, FRIEND = "How do I boil an egg?", "Say hello to my friend."


@pytest.mark.parametrize(
    ("name", "prompts", "left_out", "unread"),
    [
        ("source-lone-surrogate.jsonl", [EGG, FRIEND], {"not_utf8": 1}, []),
        (
            "source-instruction-input.jsonl",
            [f"{TASK}\n\nI loved the film.", f"{TASK}\n\nI lost my keys.", "Name two colours."],
            {},
            ["output"],
        ),
        ("source-question-choices.jsonl", ["Which one is a colour?\n\nA. red\nB. saw"], {}, ["label"]),
        ("source-hh-crlf.jsonl", [EGG], {}, ["rejected"]),
        ("source-hh-prompt-field.jsonl", [EGG], {}, ["chosen", "rejected"]),
        ("source-fewer-than-asked.csv", [EGG, FRIEND], {}, []),
        (
            "source-line-separator.jsonl",
            ["First part\u2028second part of it?", "A next\x85line and more words"],
            {},
            [],
        ),
        ("source-nul.jsonl", ["Tell me\0 about nothing at all.", EGG, FRIEND], {}, []),
        ("source-two-members.jsonl.gz", [EGG, FRIEND], {}, []),
        ("source-bom-crlf.csv", ["Two lines\r\nof text, here"], {}, []),
    ],
)
def test_inputs_that_are_read(name, prompts, left_out, unread):
    loaded = prompt_sources.load(str(INPUTS / name))
    assert [i.instruction for i in loaded] == prompts
    assert (loaded.left_out, loaded.unread) == (left_out, unread)
    if "csv" in name:
        assert [i.task for i in loaded] == (["math"] if "bom" in name else ["advice", "creative_writing"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("source-nested-deep.jsonl", "line 1: .*nested too deeply; remove what is nested"),
        ("source-duplicate-key.jsonl", "line 1: 'prompt' is there twice; rename"),
        ("source-duplicate-header.csv", "the header: 'prompt' is there twice; rename"),
    ],
)
def test_inputs_that_are_refused(name, message):
    with pytest.raises(UserError, match=f"{name}, {message}"):
        prompt_sources.check(str(INPUTS / name), SANDBOX)


def test_a_dataset_gives_what_its_file_gives():
    pytest.importorskip("datasets")
    of_file = prompt_sources.load(str(INPUTS / "dataset-mixed-keys/train.jsonl"))
    of_dataset = prompt_sources.load(f"{INPUTS}/dataset-mixed-keys:train")
    assert [i.id for i in of_dataset] == [i.id for i in of_file]
    assert [i.instruction for i in of_file] == ["Name a tool for wood.", EGG]
    assert of_dataset.unread == []


def test_faults_of_rows_through_a_dataset(tmp_path):
    """They are counted or a sentence there, too, whatever the library makes of them."""
    pytest.importorskip("datasets")

    def load(*rows):
        n = len(list(tmp_path.iterdir()))
        (tmp_path / f"d{n}").mkdir()
        write(tmp_path / f"d{n}/train.jsonl", "".join(f"{row}\n" for row in rows))
        return prompt_sources.load(f"{tmp_path}/d{n}:train")

    loaded = load('{"prompt": "Say one", "id": 1}', '{"prompt": null, "id": 2}', '{"id": 3, "prompt": ""}')
    assert [i.instruction for i in loaded] == ["Say one"] and loaded.left_out == {"empty": 2}
    chats = [{"messages": [{"role": "user", "content": f"Say {n}"}], "options": {n: "x"}} for n in ("a", "b")]
    loaded = load(*map(json.dumps, chats))
    assert [i.instruction for i in loaded] == ["Say a\n\na. x", "Say b\n\nb. x"] and loaded.unread == []
    for row in ('{"prompt": "a", "prompt": "b"}', '{"prompt": ' + "[" * 3000 + "]" * 3000 + "}"):
        with pytest.raises(UserError, match="cannot be loaded|is of type"):
            load(row)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "id;prompt\n1;Say one, two\n2;'Say' three\n"),
        ("p.csv", "id\tprompt\n1\tSay one, two\n2\t'Say' three\n"),
        ("p.csv.gz", "id|Prompt\n1|Say one, two\n2|'Say' three\n"),
        ("p.tsv", "prompt\tid\nSay one, two\t1\n'Say' three\t2\n"),
        ("p.TSV", "prompt\nSay one, two\n'Say' three\n"),
        ("p.tsv.gz", "id, PROMPT \n1,\"Say one, two\"\n2,'Say' three\n"),
    ],
)
def test_delimiters_and_capitals_of_columns(tmp_path, name, content):
    loaded = prompt_sources.load(write(tmp_path / name, content))
    assert [i.instruction for i in loaded] == ["Say one, two", "'Say' three"]
    assert loaded.unread in (["id"], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Prompt,prompt\na,b\n", "row 2 .*'Prompt' and 'prompt' differ in their case only; rename one"),
        ("text;id\na;1\n", "row 2 .*none of the keys .*it has text;id"),
        ("messages\n[]\n", "row 2 .*'messages' is of type str"),
    ],
)
def test_columns_that_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        prompt_sources.check(write(tmp_path / "p.csv", content), SANDBOX)


def test_a_source_of_evaluation_prompts_alone_is_refused_before_anything_is_loaded(tmp_path):
    asked = [h.instruction for h in load_heldout(ROOT / SANDBOX.heldout)]
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    with pytest.raises(UserError, match=f"holds no usable prompt .evaluation_prompt {len(asked)}"):
        prompt_sources.check(str(path), SANDBOX)


def test_a_source_is_read_once_for_all_that_ask_and_anew_when_it_has_changed(tmp_path, monkeypatch):
    """A run with --pairs asks again each round."""
    path, reads = (
        write(tmp_path / "p.jsonl", jsonl({"prompt": "What is red?"}, {"prompt": "What is blue?"})),
        [],
    )
    read_row = prompt_sources.read_row
    monkeypatch.setattr(prompt_sources, "read_row", lambda *args: reads.append(1) or read_row(*args))
    first = prompt_sources.load(path, 1, seed=3)
    first.left_out["changed by its owner"] = 1
    assert prompt_sources.load(path, 2, seed=3)[:1] == list(first) and len(reads) == 2
    assert prompt_sources.load(path).left_out == {} and len(reads) == 2
    write(tmp_path / "p.jsonl", jsonl({"prompt": "What is green, then?"}))
    assert [i.instruction for i in prompt_sources.load(path)] == ["What is green, then?"]
