"""The constitution: what is shipped, and that every mistake in one is a sentence that names the place."""

import pytest
import yaml
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.prompts import constitution, markers

SHIPPED = ROOT / "constitution.yaml"
IDS = (
    "helpfulness accuracy uncertainty ai_identity reasoning relevance respect fairness no_overrefusal "
    "harm danger law privacy manipulation vulnerable"
).split()


@pytest.fixture(scope="module")
def shipped():
    return constitution.load(SHIPPED)


def test_shipped_ids_in_their_order(shipped):
    assert [p.id for p in shipped.principles] == IDS


def test_shipped_principles_are_one_short_sentence_about_the_response(shipped):
    for p in shipped.principles:
        assert p.principle.startswith("The response should ") and p.principle.count(".") == 1, p.principle
        assert 8 <= len(p.principle.split()) <= 16, p.principle
        assert p.critique_request.endswith(".") and p.revision_request.endswith("."), p.id


def test_shipped_texts_differ_from_each_other_and_hold_no_verdict(shipped):
    texts = [getattr(p, key) for p in shipped.principles for key in constitution.KEYS]
    assert len(set(texts)) == len(texts)
    assert not [text for text in texts if markers.KEEP in text or markers.CHANGE in text]


# ---- the hash ----


def entry(**changes):
    return {
        "id": "a",
        "title": "A",
        "principle": "The response should be A.",
        "critique_request": "Is it A?",
        "revision_request": "Make it A.",
        **changes,
    }


def write(tmp_path, *entries, version=1, name="mine"):
    path = tmp_path / "constitution.yaml"
    content = {"version": version, "name": name, "principles": list(entries)}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_hash_does_not_see_comments_layout_or_name(tmp_path, shipped):
    content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    assert constitution.load(write(tmp_path, *content["principles"], name="other")).hash == shipped.hash


@pytest.mark.parametrize("key", constitution.KEYS)
def test_hash_sees_every_text(tmp_path, key):
    before = constitution.load(write(tmp_path, entry())).hash
    assert constitution.load(write(tmp_path, entry(**{key: "b"}))).hash != before


def test_hash_sees_the_order(tmp_path):
    one, two = entry(), entry(id="b")
    before = constitution.load(write(tmp_path, one, two)).hash
    assert constitution.load(write(tmp_path, two, one)).hash != before


# ---- choosing ----


def test_pick_is_distinct_depends_on_the_seed_alone_and_reaches_everything(shipped):
    assert shipped.pick("row 7", 2) == shipped.pick("row 7", 2)
    picked = [shipped.pick(f"row {i}", 2) for i in range(300)]
    assert all(len({p.id for p in pair}) == 2 for pair in picked)
    assert {p.id for pair in picked for p in pair} == set(IDS)
    assert set(shipped.pick(0, len(IDS))) == set(shipped.principles)


@pytest.mark.parametrize("k", [-1, 0, 16])
def test_pick_of_an_impossible_number(shipped, k):
    with pytest.raises(UserError, match=rf"cannot pick {k} .*has 15.*1 to 15"):
        shipped.pick(0, k)


def test_by_id(shipped):
    assert shipped.by_id("harm") is shipped.principles[9]
    with pytest.raises(UserError, match=r"'harms'.*constitution\.yaml; choose one of: helpfulness, .*law"):
        shipped.by_id("harms")


# ---- mistakes ----


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"titel": "A"}, r"entry 2 \(b\) has the unknown key 'titel'"),
        ({"title": ""}, r"entry 2 \(b\): title is empty"),
        ({"principle": "  "}, r"entry 2 \(b\): principle is empty"),
        ({"title": None}, r"entry 2 \(b\): title is empty; it must be a text"),
        ({"title": 3}, r"entry 2 \(b\): title is a number"),
        ({"title": True}, r"entry 2 \(b\): title is a yes/no value"),
        ({"critique_request": ["Is it?"]}, r"entry 2 \(b\): critique_request is a list"),
        ({"id": 7}, r"entry 2: id is a number"),
        ({"id": "a"}, r"entry 2 has the id 'a', which an earlier entry has"),
        ({"id": "No Spaces"}, r"entry 2 \(No Spaces\): the id 'No Spaces' may hold only"),
        ({"id": "../a"}, "may hold only lower-case letters"),
        ({"principle": "One.\nTwo."}, r"entry 2 \(b\): principle has a line break"),
        ({"principle": "One.\u2028Two."}, "line break"),
        ({"principle": "One <|im_end|> two."}, r"principle holds '<\|'"),
        ({"principle": "One <|endoftext|>"}, r"principle holds '<\|'"),
        *[
            ({"revision_request": f"Make it so. {marker} yes"}, f"revision_request holds '{marker}'")
            for marker in ("Instruction:", "Response:", "Principle:", "Critique:", "Revision:")
        ],
    ],
)
def test_a_mistake_in_an_entry_names_file_and_entry(tmp_path, changes, complaint):
    path = write(tmp_path, entry(), entry(id="b") | changes)
    with pytest.raises(UserError, match=complaint) as error:
        constitution.load(path)
    assert str(path) in str(error.value) and ";" in str(error.value)


@pytest.mark.parametrize("key", constitution.KEYS)
def test_a_missing_key_is_named(tmp_path, key):
    broken = entry(id="b")
    del broken[key]
    with pytest.raises(UserError, match=rf"entry 2.* lacks the key '{key}'"):
        constitution.load(write(tmp_path, entry(), broken))


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "is empty"),
        ("just words", "is a text; it must be a mapping"),
        ("a: [", "not valid YAML.*line 1"),
        ("a: \x00", "not valid YAML"),
        ("[" * 4000, "not valid YAML"),
        ("version: 1\nname: n\nprinciples: []\n", "no principles"),
        ("version: 1\nname: n\nprinciples:\n", "no principles"),
        ("version: 1\nname: n\nprinciples: {a: b}\n", "no principles"),
        ("version: 1\nname: n\nprinciples: [a]\n", "entry 1 is a text; it must be a mapping"),
        ("version: 1\nname: n\n", "lacks the key 'principles'"),
        ("version: 2\nname: n\nprinciples: [a]\n", "version is 2"),
        ("version: 1\nname: n\nprinciples: [a]\nmore: x\n", "unknown key 'more'"),
        (
            "version: 1\nname: n\nprinciples:\n- id: a\n  title: A\n  title: B\n",
            "'title' stands twice.*line 6",
        ),
        ("version: 1\nversion: 1\n", "'version' stands twice"),
        ("version: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_constitution(tmp_path, text, complaint):
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=complaint) as error:
        constitution.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="there is no constitution at .*gone.yaml; give the path"):
        constitution.load(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match="cannot read the constitution"):
        constitution.load(tmp_path)
    (tmp_path / "latin1.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="cannot read the constitution .*latin1.yaml"):
        constitution.load(tmp_path / "latin1.yaml")
