"""Small files: what JSON holds, and what it does not."""

import math

import pytest
from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.files import from_json, to_json, write_json
from cai.core.run import Run

ODD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("number", ODD)
def test_a_number_that_json_does_not_know_is_written_nowhere(number, tmp_path):
    value = {"rows": [{"loss": 0.5}, {"loss": number}]}
    with pytest.raises(UserError, match=f"a.json is not written: loss is {number}"):
        write_json(tmp_path / "a.json", value)
    rows = tmp_path / "a.jsonl"
    jsonl.append(rows, [{"loss": 0.5}])
    with pytest.raises(UserError, match="a.jsonl is not written: loss is"):
        jsonl.append(rows, [{"loss": 0.25}, {"loss": number}])
    assert rows.read_text() == '{"loss": 0.5}\n' and [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    write_json(tmp_path / "a.json", {"loss": None})  # not measured


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_a_number_that_json_does_not_know_is_believed_nowhere(text, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=text):
        from_json(f'{{"a": [1.5, {text}]}}')
    (tmp_path / "a.jsonl").write_text(f'{{"a": 1.5}}\n{{"a": {text}}}\n')
    with pytest.raises(UserError, match="a.jsonl, line 2: not JSON"):
        jsonl.read(tmp_path / "a.jsonl", {"a": float})
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    with Run.open("a", {}) as run:
        run.record(totals={"dollars": 1.0})
    manifest = run.data / "run.json"
    manifest.write_text(manifest.read_text().replace("1.0", text))
    with pytest.raises(UserError, match="is not a run's manifest"):
        Run.reopen("a")


def test_what_is_written_is_read_back():
    value = {"a": [1.5, None, True, "ä\ud800"], "b": 10**20}
    assert from_json(to_json(value, None)) == value


def test_a_last_line_with_such_a_number_is_not_cut_off(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": NaN}')
    jsonl.append(path, [{"a": 1.0}])
    assert path.read_text() == '{"a": NaN}\n{"a": 1.0}\n'
