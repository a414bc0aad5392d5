import errno
import os
import subprocess
import sys
import time

import pytest
from cai.core import jsonl, schema
from cai.core.errors import UserError
from cai.core.files import ROOT

KEYS = {"id": str}


def test_ids_join_by_content():
    assert (
        schema.content_id("Who  is it?\n")
        == schema.content_id("Who is it?")
        != schema.content_id("Who is it")
    )
    assert len(schema.content_id("x")) == 16


def test_a_rows_seed_depends_on_run_row_and_purpose_only():
    seeds = {schema.row_seed(s, i, p) for s in (0, 1) for i in ("a", "b") for p in ("answer", "critique")}
    assert len(seeds) == 8 and all(0 <= s < 2**31 for s in seeds)
    assert schema.row_seed(0, "a", "answer") == schema.row_seed(0, "a", "answer")


def test_append_and_read_with_odd_text(tmp_path):
    rows = [{"id": "a", "text": 'line\u2028separator, tab\t, quote " and \n newline'}, {"id": "ü"}]
    path = tmp_path / "x.jsonl"
    jsonl.append(path, rows[:1])
    jsonl.append(path, rows[1:])
    assert jsonl.read(path, KEYS) == rows
    assert jsonl.read(tmp_path / "none.jsonl", KEYS) == []


@pytest.mark.parametrize("half", [b'{"id": "b", "te', b"x", b"12", b"\xc3", b"z" * 200_000])
def test_a_half_written_last_line_is_left_out_and_cut_off(tmp_path, half):
    path = tmp_path / "x.jsonl"
    jsonl.append(path, [{"id": "a"}])
    path.write_bytes(path.read_bytes() + half)
    assert jsonl.read(path, KEYS) == [{"id": "a"}]
    jsonl.append(path, [{"id": "c"}])
    assert jsonl.read(path, KEYS) == [{"id": "a"}, {"id": "c"}]


@pytest.mark.parametrize("text", ["b", "b" * 200_000])
def test_a_whole_last_line_without_its_newline_is_a_line(tmp_path, text):
    path = tmp_path / "x.jsonl"
    for before in ("", '{"id": "a"}\n'):
        path.write_text(before + f'{{"id": "{text}"}}')
        rows = jsonl.read(path, KEYS)
        assert [r["id"] for r in rows] == ["a"] * bool(before) + [text]
        jsonl.append(path, [{"id": "c"}])
        assert jsonl.read(path, KEYS) == [*rows, {"id": "c"}]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"no": "id"}', '{"id": 5}', ""])
def test_a_foreign_line_is_an_error_with_its_number(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a"}\n' + line + '\n{"id": "b"}\n')
    with pytest.raises(UserError, match="line 2"):
        jsonl.read(path, KEYS)


def test_a_full_disk_takes_back_what_was_half_written(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    jsonl.append(path, [{"id": "a"}])
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        jsonl.append(path, [{"id": "b" * 100_000}])
    assert error.value.filename == str(path) and path.read_bytes() == before


def test_a_lone_surrogate_comes_back_as_it_was(tmp_path):
    row = {"id": "\ud83d é 😀"}
    jsonl.append(tmp_path / "x.jsonl", [row])
    assert jsonl.read(tmp_path / "x.jsonl", KEYS) == [row]


def test_a_process_killed_while_it_appends_loses_only_what_it_had_not_finished(tmp_path):
    path = tmp_path / "x.jsonl"
    code = (
        "import sys; sys.path.insert(0, 'scripts')\n"
        "from pathlib import Path\nfrom cai.core.jsonl import append\n"
        f"n = 0\nwhile True:\n    append(Path({str(path)!r}), [{{'id': str(n), 'pad': 'x' * 5000}}]); "
        "print(n, flush=True); n += 1"
    )
    for _ in range(3):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            said = process.stdout.readline()
        process.kill()
        said = (process.stdout.read().splitlines() or [said])[-1]
        process.wait()
        rows = jsonl.read(path, KEYS)
        assert [int(x["id"]) for x in rows] == list(range(len(rows))) and len(rows) > int(said)
