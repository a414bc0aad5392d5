"""Prompt files are read whole: a line that is missed is a held-out prompt that is no longer barred."""

import json

import pytest
from cai.core import prompt_files
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.prompt_files import load_heldout, load_neutral, load_seeds
from cai.evaluation import test_sets

ROW = {"instruction": "Name {}", "text": "Name {}", "task": "math", "kind": "task", "check": {"number": 1}}


def load_tests(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_sets, "PATH", path)
        return test_sets.load()


READERS = (load_seeds, load_heldout, load_neutral, load_tests)


def line(n):
    return json.dumps(ROW).replace("{}", str(n))


@pytest.mark.parametrize("load", READERS)
def test_a_last_line_without_its_newline_is_a_line(tmp_path, load):
    path = tmp_path / "p.jsonl"
    for end in ("", "\n", "\r\n", "\n\n"):
        path.write_text("\ufeff" + "\n".join(map(line, range(3))) + end, encoding="utf-8", newline="")
        assert len(load(path)) == 3


@pytest.mark.parametrize("load", READERS)
@pytest.mark.parametrize(
    ("last", "message"),
    [
        (line(2)[:-1], "line 3: not JSON"),
        ("[1]", "line 3: not a JSON object"),
        ("12", "line 3: not a JSON object"),
        ("\n" + line(2), "line 3: not JSON"),
        ('{"task": "math", "task": "math"}', "line 3: 'task' is there twice"),
        ("[" * 3000 + "]" * 3000, "line 3: .*nested too deeply"),
        (line("\\ud83d"), "line 3: not UTF-8"),
        ("{}", "line 3: the key .* is missing"),
    ],
)
def test_a_last_line_that_is_not_whole_is_refused(tmp_path, load, last, message):
    path = tmp_path / "p.jsonl"
    path.write_text(f"{line(0)}\n{line(1)}\n{last}")
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert "p.jsonl" in str(error.value)


def test_a_line_separator_ends_no_line():
    [seed] = load_seeds(ROOT / "tests/data/bug-inputs/seeds-line-separator.jsonl")
    assert seed == prompt_files.Seed("math", "What is\u2028two and two?")
