import io

import pytest
from cai.core.run import Run
from cai.generation.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    with Run.open("a", {}) as run:
        run.hourly_rate = 2.0
        run.record(totals={"dollars": 1.0})
        yield run


def wave(n, kept):
    return [{"kept": i < kept, "tokens": {"prompt": 9, "completion": 50}} for i in range(n)]


def log_of(run):
    return (run.logs / "a.log").read_text().splitlines() if (run.logs / "a.log").exists() else []


def test_the_line_has_examples_passed_speed_time_left_and_dollars(run):
    now = [0.0]
    progress = Progress(100, run, done=20, passed=10, out=io.StringIO(), clock=lambda: now[0])
    now[0] = 60.0
    run.record(totals={"dollars": 1.5})
    progress.advance(wave(20, 15))
    assert progress.line() == (
        "40/100 examples (40%) · 25 passed (62%) · 17 tokens/s · 3 min left · $1.50 so far, $3.00 expected"
    )


def test_before_the_first_wave_nothing_is_made_up(run):
    line = Progress(100, run, out=io.StringIO()).line()
    assert line == "0/100 examples (0%) · $1.00 so far"
    run.hourly_rate = 0.0
    assert "$" not in Progress(100, run, out=io.StringIO()).line()
    assert Progress(0, run, out=io.StringIO()).line() == "0/0 examples"


def test_a_terminal_has_one_line_that_is_rewritten_and_the_log_a_line_now_and_then(run, monkeypatch):
    now, out = [0.0], Terminal()
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    progress = Progress(64, run, out=out, clock=lambda: now[0])
    for _ in range(8):
        now[0] += 10.0
        progress.advance(wave(8, 4))
    progress.close()
    text = out.getvalue()
    shown = [line.split()[0] for line in text.split("\r") if line.strip()]
    assert list(dict.fromkeys(shown)) == [f"{n}/64" for n in range(0, 65, 8)]
    assert text.count("\n") == 1 and text.endswith("\n")
    lines = log_of(run)
    assert [line.split()[0] for line in lines] == ["24/64", "48/64", "64/64"]


@pytest.mark.parametrize("columns", [30, 90, 200])
def test_the_line_fits_a_terminal_whose_width_changes(run, monkeypatch, columns):
    out = Terminal()
    progress = Progress(64, run, out=out)
    monkeypatch.setenv("COLUMNS", str(columns))
    progress.advance(wave(8, 4))
    progress.close()
    last = out.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("8/64 examples (12%)") and len(last.rstrip()) < columns


def test_elsewhere_there_are_plain_lines_at_times_and_one_at_the_end(run):
    now, out = [0.0], io.StringIO()
    progress = Progress(64, run, out=out, clock=lambda: now[0])
    for _ in range(8):
        now[0] += 10.0
        progress.advance(wave(8, 4))
    progress.close()
    assert "\r" not in out.getvalue()
    assert out.getvalue().splitlines() == log_of(run) and len(log_of(run)) == 3


def test_a_run_that_was_finished_says_nothing(run):
    for out in (io.StringIO(), Terminal()):
        Progress(64, run, done=64, passed=30, out=out).close()
        assert out.getvalue() == "" and log_of(run) == []
