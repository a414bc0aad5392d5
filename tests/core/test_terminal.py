"""A terminal that cannot show a text, fails, goes away or was never there; signals. Scripts of a few lines,
in processes of their own."""

import errno
import io
import os
import pty
import subprocess
import sys

import pytest
from cai.core import terminal
from cai.core.files import ROOT
from cai.core.jsonl import read
from cai.core.run import Run
from cai.core.terminal import Terminal, guard, say

HEAD = """
import os, signal, sys, warnings
sys.path.insert(0, "scripts")
from cai.core.cli import cli
from cai.core.run import Run
"""
RUN = """
def main():
    with Run.open("a", {}) as run:
        for number in range(2000):
            run.log(f"line {number} of a run \\u202e naïve \\ud800 " + 20 * ".")
        print("done", "\\x1b[2J 日", "\\ud800", file=sys.stderr)
        warnings.warn("a library's \\x1b[2J 日")
        run.record(ended=True)
    return 3
cli(main)
"""


def run(code, output, shell='exec {python} -c "$CODE"', **env):
    """HEAD and code by a shell's command; the finished process."""
    env = os.environ | {"CAI_OUTPUT": str(output), "CODE": HEAD + code} | env
    command = ["bash", "-c", shell.format(python=sys.executable)]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=60)


def assert_whole(output):
    lines = (output / "logs/a.log").read_text(encoding="utf-8").splitlines()
    assert lines == [f"line {n} of a run \\u202e naïve \\ud800 " + 20 * "." for n in range(2000)]
    assert '"ended": true' in (output / "data/a/run.json").read_text()


@pytest.mark.parametrize(
    "shell",
    [
        '{python} -c "$CODE" | head -1; exit ${{PIPESTATUS[0]}}',
        '{python} -c "$CODE" 2>&1 | head -1; exit ${{PIPESTATUS[0]}}',
        '{python} -c "$CODE" >&- 2>&-',
        '{python} -c "$CODE" <&- >&- 2>&-',
        '{python} -c "$CODE" >/dev/full 2>/dev/full',
    ],
)
def test_a_run_goes_on_without_its_terminal_and_its_log_is_whole(tmp_path, shell):
    done = run(RUN, tmp_path, shell)
    assert done.returncode == 3
    assert_whole(tmp_path)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_shows_what_it_can(tmp_path, encoding):
    done = run(RUN, tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 3
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    naive = "na\\xefve" if encoding == "ascii" else "naïve"
    assert out.startswith(f"line 0 of a run \\u202e {naive} \\ud800 ...") and out.count("\n") == 2000
    day = "日" if encoding == "utf-8" else "\\u65e5"
    assert f"done \\x1b[2J {day} \\ud800\n" in err and f"library's \\x1b[2J {day}" in err
    assert_whole(tmp_path)


def test_a_terminal_that_is_closed_takes_its_copy_with_it_and_nothing_else(tmp_path):
    ours, theirs = pty.openpty()
    env = os.environ | {"CAI_OUTPUT": str(tmp_path)}
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen([sys.executable, "-c", HEAD + RUN], env=env, cwd=ROOT, **streams)
    os.close(theirs)
    assert os.read(ours, 4) == b"line"
    os.close(ours)  # what is written from now on gives EIO
    assert process.wait(60) == 3
    assert_whole(tmp_path)


def test_a_traceback_commands_no_terminal(tmp_path):
    code = "def main():\n    raise ValueError('\\x1b[2J of \\ud800 a model \\u202e')\ncli(main)"
    done = run(code, tmp_path, PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 1
    assert done.stderr.endswith(b"ValueError: \\x1b[2J of \\ud800 a model \\u202e\n")


def test_no_file_of_a_run_takes_the_number_of_a_closed_stream(tmp_path):
    code = """
def main():
    with open(os.environ["CAI_OUTPUT"] + "/rows", "w") as rows:
        os.write(1, b"a library in C"), os.write(2, b"another")
        rows.write("a row")
    return 0
cli(main)
"""
    assert run(code, tmp_path, '{python} -c "$CODE" >&- 2>&-').returncode == 0
    assert (tmp_path / "rows").read_text() == "a row"


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_ends_a_run_as_ctrl_c_does_and_its_step_is_billed(tmp_path, monkeypatch, name, status):
    code = f"""
def main():
    with Run.open("a", {{}}) as run, run.step("training"):
        os.kill(os.getpid(), signal.{name})
        signal.pause()
cli(main)
"""
    done = run(code, tmp_path)
    assert done.returncode == status and b"the same command resumes" in done.stderr
    assert b"Traceback" not in done.stderr
    [row] = read(tmp_path / "logs/ledger.jsonl", {"step": str})
    assert row["step"] == "training" and row["interrupted"]
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    Run.open("a", {}).__exit__()  # its lock is free


def test_a_signal_that_comes_twice_breaks_nothing_off(tmp_path):
    code = """
def main():
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        signal.pause()
    finally:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        print("put away")
cli(main)
"""
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout) == (129, b"put away\n") and done.stderr.startswith(b"\nSIGHUP: ")


def test_a_signal_inside_of_a_loop_is_no_error_of_its_task(tmp_path):
    code = """
import asyncio
async def server():
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
async def waits():
    await asyncio.create_task(server())
cli(lambda: asyncio.run(waits()))
"""
    done = run(code, tmp_path)
    assert done.returncode == 143
    assert done.stderr == b"\nSIGTERM: nothing finished is lost, the same command resumes\n"


def test_under_nohup_a_run_goes_on(tmp_path):
    code = 'def main():\n    os.kill(os.getpid(), signal.SIGHUP)\n    print("goes on")\ncli(main)'
    done = run(code, tmp_path, 'trap "" HUP; exec {python} -c "$CODE"')
    assert (done.returncode, done.stdout) == (0, b"goes on\n")


# ---- in this process ----


class Failing(io.StringIO):
    error = OSError(errno.EAGAIN, "full")

    def write(self, text):
        if self.error:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("error", [BlockingIOError(errno.EAGAIN, "x"), OSError(errno.ENOSPC, "x")])
def test_what_passes_takes_a_text_and_not_the_terminal(error):
    stream = Failing()
    stream.error = error
    print("lost", file=Terminal(stream), flush=True)
    stream.error = None
    print("there", file=Terminal(stream), flush=True)
    assert stream.getvalue() == "there\n"


def test_a_stream_that_is_closed_or_missing_is_no_error(monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    say("x")
    monkeypatch.setattr(sys, "stdout", None)
    say("x")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    guard()
    guard()
    print("x")
    assert isinstance(sys.stdout, Terminal) and not isinstance(sys.stdout._stream, Terminal)


def test_a_progress_bar_rewrites_its_line_and_no_text_does(monkeypatch):
    stream = io.StringIO()
    print("GO\rNO-GO", file=Terminal(stream))
    print("\r 5%|#", end="", file=Terminal(stream))
    print("\x1b[A\r 9%|#", end="", file=Terminal(stream))
    assert stream.getvalue() == "GO\\rNO-GO\n\r 5%|#\x1b[A\r 9%|#"
    monkeypatch.setattr(sys, "stdout", stream)
    say("\rNO-GO")
    assert stream.getvalue().endswith("#\\rNO-GO\n")


def test_every_script_ends_through_cli():
    for path in (*(ROOT / "scripts").glob("*.py"), ROOT / "scripts/cai/preflight/hardware.py"):
        assert path.read_text().rstrip().endswith("cli(main)"), path
    assert terminal.GONE
