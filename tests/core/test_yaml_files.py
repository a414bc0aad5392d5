"""What PyYAML takes in silence, or with the wrong advice, is refused with file, line and way out."""

import re

import pytest
from cai.bootstrap import plan
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.yaml_files import read_yaml
from cai.prompts import constitution

INPUTS = ROOT / "tests/data/bug-inputs"


def read(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path, "file", "other.yaml")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("constitution-hash.yaml", "the text is cut short at the # behind 'Be kind', .*line 6.; put quotes"),
        (
            "constitution-merge-key.yaml",
            "a merge key .<<. is not read .line 10.; write this entry's keys out",
        ),
    ],
)
def test_constitutions_that_trouble_tools_of_this_kind(name, complaint):
    with pytest.raises(UserError, match=rf"{name}: {complaint}") as error:
        constitution.load(INPUTS / name)
    assert ("quotes" in str(error.value)) is ("hash" in name)  # each sentence names its own fault alone


FAULTS = [
    ("title: Be kind #1 of all", "cut short at the # behind 'Be kind'.*line 1"),
    ("a: 1\ntitle: Kind  # and short", "behind 'Kind'.*line 2"),
    ("title:\n  Be kind\n  and more # or less\na: 1", "behind 'Be kind and more'"),
    ("stages: [a one #, b\n  ]", "behind 'a one'"),
    ("stages:\n- a: b\n- c # d", "behind 'c'.*line 3"),
    ('title: "half \\ud83d a face"', "half of a surrogate pair .*line 1.; write"),
    ('title: "\\ud83d\\ude00"', "half of a surrogate pair .*line 1.; write"),
    ('"\\ud83d": 1', "half of a surrogate pair .*line 1.; write"),
    ("every: &a {x: 1}\nscales: {<<: *a}", "a merge key .*line 2"),
    ("every: &a {x: 1}\nscales:\n  <<: [*a]\n  <<: *a", "a merge key .*line 3"),
    ("title: a\nstages: []\ntitle: b", "the key 'title' stands twice in one entry .line 3.; remove"),
    ("[" * 4000, "not valid YAML: it is nested too deeply"),
]


@pytest.mark.parametrize(("text", "complaint"), FAULTS)
def test_what_is_refused_in_every_file(tmp_path, text, complaint):
    said = []
    for load in (lambda _: read(tmp_path, text), plan.load, constitution.load):
        with pytest.raises(UserError, match=complaint) as error:
            load(tmp_path / "mine.yaml")
        said.append(str(error.value))
    assert str(tmp_path / "mine.yaml") in said[0] and "\n" not in said[0] and len(set(said)) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 40 # a number", {"a": 40}),
        ("a: [] # none", {"a": []}),
        ("a: # not yet", {"a": None}),
        ("a: yes # and no", {"a": True}),
        ("a: 'Be kind #1' # quoted", {"a": "Be kind #1"}),
        ("a: >- # folded\n  Be kind #1\n  of all", {"a": "Be kind #1 of all"}),
        ("a: one#two", {"a": "one#two"}),
        ("# one\na: two\n# three\nb: four\n  # five", {"a": "two", "b": "four"}),
        ("\ufeffa: two\r\n# three\r\nb: four", {"a": "two", "b": "four"}),
        ('a: "\\U0001F600"', {"a": "\U0001f600"}),
        ('"<<": 1', {"<<": 1}),
        ("a: &b one two\nc: *b # again", {"a": "one two", "c": "one two"}),
    ],
)
def test_comments_and_quotes_that_cut_nothing(tmp_path, text, value):
    assert read(tmp_path, text) == value


def test_the_files_that_come_with_the_project_are_read():
    for path in [ROOT / "constitution.yaml", *(ROOT / "specs/plans").glob("*.yaml")]:
        assert re.search("title|name", str(read_yaml(path, "file", "x.yaml")))
