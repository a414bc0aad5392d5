import contextlib
import errno
import json
import os
import re
import subprocess
import sys

import pytest
from cai.core import cli, errors, files, run
from cai.core.cli import LONGEST_NAME
from cai.core.errors import BudgetReached, UserError
from cai.core.run import Run, read_manifest
from cai.core.schema import FORMAT

SETTINGS = {"model": "sandbox", "seed": 0}


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    return tmp_path


def test_a_rerun_with_the_same_settings_resumes(output):
    with Run.open("a", SETTINGS) as run:
        run.record(counts={"kept": 3})
    with Run.open("a", SETTINGS) as run:
        assert run.manifest["counts"] == {"kept": 3}
    manifest = json.loads((output / "data/a/run.json").read_text())
    assert manifest["settings"] == SETTINGS and manifest["versions"]["torch"] and "argv" in manifest


def test_before_its_first_row_a_run_may_change_its_settings():
    Run.open("a", SETTINGS).__exit__()
    with Run.open("a", SETTINGS | {"seed": 1}) as run:
        assert run.manifest["settings"]["seed"] == 1


def test_other_settings_stop_and_are_named_and_the_lock_is_free_again(output):
    Run.open("a", SETTINGS).__exit__()
    (output / "data/a/records.jsonl").write_text("")
    with pytest.raises(UserError, match=r"seed was 0, now 1.*--fresh"):
        Run.open("a", {"model": "sandbox", "seed": 1})
    with pytest.raises(UserError, match=r"bits was not set, now 4"):
        Run.open("a", SETTINGS | {"bits": 4})
    Run.open("a", SETTINGS).__exit__()


def test_a_run_that_is_older_than_a_setting_goes_on_by_what_was_done_then(output):
    from cai.models.registry import ModelSpec

    assert run.SINCE_ADDED == {key: getattr(ModelSpec, key) for key in run.SINCE_ADDED}
    Run.open("a", SETTINGS).__exit__()
    (output / "data/a/records.jsonl").write_text("")
    Run.open("a", SETTINGS | run.SINCE_ADDED).__exit__()
    Run.open("a", SETTINGS).__exit__()
    with pytest.raises(UserError, match=r"judge_rule was 'both orders', now 'log-odds'"):
        Run.open("a", SETTINGS | {"judge_rule": "log-odds"})


def test_settings_are_compared_as_json_stores_them():
    Run.open("a", {"sizes": (1, 2)}).__exit__()
    Run.open("a", {"sizes": (1, 2)}).__exit__()


def test_fresh_moves_the_old_run_aside_and_keeps_it(output):
    for number in range(3):
        with Run.open("a", SETTINGS | {"seed": number}, fresh=True) as run:
            (run.data / "records.jsonl").write_text(f"{number}\n")
            run.checkpoints.mkdir(parents=True, exist_ok=True)
    assert (output / "data/a~1/records.jsonl").read_text() == "0\n"
    assert (output / "data/a~2/records.jsonl").read_text() == "1\n"
    assert (output / "data/a/records.jsonl").read_text() == "2\n"
    assert (output / "checkpoints/a~1").is_dir()


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b/c", "a b", ".hidden", "a;b", "prompts", "constitutions/x", "a/../b"]
    + ["a.part", "a.part/b", "a/b.part", "a.PART"]  # what a conversion or a training clears away
    + ["Prompts", "CONSTITUTIONS/x"],  # the same on some file systems
)
def test_a_run_name_is_no_path(name):
    with pytest.raises(UserError):
        Run.open(name, SETTINGS)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(output):
    code = (
        "import sys; sys.path.insert(0, 'scripts'); from cai.core.run import Run; r = Run.open('a', "
        "{'model': 'sandbox', 'seed': 0});"
        "print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=files.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CAI_OUTPUT": str(output)},
    )
    assert other.stdout.readline() == "open\n"
    with pytest.raises(UserError, match=f"in use by another process .pid {other.pid}"):
        Run.open("a", SETTINGS)
    other.kill()
    other.wait()
    Run.open("a", SETTINGS).__exit__()


@pytest.mark.parametrize(
    "text",
    ['{"settings": {"mo', "null", "[" * 100_000]
    + [f'{{"run": "a", "settings": {{}}, "format": 2, "{key}": 3}}' for key in ("totals", "gate")]
    + [f'{{"run": "a", "format": 2, "settings": {text}}}' for text in ('{"seed": "x"}', '{"held_out": NaN}')]
    + ['{"run": "a", "format": 2, "settings": {}, "totals": {"seconds": null}}']
    + ['{"run": "a", "format": 2, "settings": {}, "pairs": {"count": "all"}}'],
)
def test_a_damaged_manifest_is_an_error_with_the_way_out(output, text):
    Run.open("a", SETTINGS).__exit__()
    (output / "data/a/run.json").write_text(text)
    with pytest.raises(UserError, match="--fresh"):
        Run.open("a", SETTINGS)
    with Run.open("a", SETTINGS, fresh=True):
        assert (output / "data/a~1/run.json").exists()


def test_a_pinned_fact_must_stay():
    with Run.open("a", SETTINGS) as run:
        run.pin(revision="abc")
    with Run.open("a", SETTINGS) as run:
        run.pin(revision="abc")
        with pytest.raises(UserError, match="abc.*def"):
            run.pin(revision="def")


def test_steps_are_timed_counted_and_priced(output, capsys):
    from cai.models.engine import Completion

    with Run.open("a", SETTINGS) as run:
        run.hourly_rate = 3600.0
        for _ in range(2):
            with run.step("answer") as step:
                step.count([Completion("x", 5, 7, "stop"), Completion("y", 1, 2, "stop")])
        rows = [json.loads(line) for line in (output / "logs/ledger.jsonl").read_text().splitlines()]
        assert [(x["step"], x["prompt_tokens"], x["completion_tokens"], x["run"]) for x in rows] == [
            ("answer", 9, 6, "a")
        ] * 2
        assert all(x["dollars"] == pytest.approx(x["seconds"], abs=1e-2) for x in rows)
        assert run.manifest["totals"]["prompt_tokens"] == 18
    assert "9 + 6 tokens, $" in capsys.readouterr().out


def test_a_step_is_of_the_precision_that_was_loaded_whatever_the_data_were_made_in(output):
    with Run.open("a", SETTINGS | {"bits": 4}) as run:
        run.record(bits=16)
        with run.step("training", quiet=True):
            pass
    assert json.loads((output / "logs/ledger.jsonl").read_text())["bits"] == 16


def exits(main) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.cli(main)
    return stop.value.code


def test_errors_of_a_user_are_a_sentence_and_status_2(capsys):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "data/x")

    def wrong():
        raise UserError("it is wrong; do this")

    assert exits(wrong) == 2 and capsys.readouterr().err == "error: it is wrong; do this\n"
    assert exits(full) == 2 and "the disk is full (data/x)" in capsys.readouterr().err
    assert exits(lambda: 3) == 3 and exits(lambda: None) == 0

    def interrupt():
        raise KeyboardInterrupt

    assert exits(interrupt) == 130
    with pytest.raises(OSError):
        cli.cli(lambda: (_ for _ in ()).throw(OSError(errno.EBADF, "x")))


def test_a_directory_in_the_way_and_a_name_too_long_are_sentences(output):
    with pytest.raises(UserError, match="a name has at most 100 letters; choose a shorter one"):
        Run.open("a" * 260, SETTINGS)
    assert not list(output.iterdir())
    (output / "logs/.a.lock").mkdir(parents=True)
    with pytest.raises(OSError) as error:
        Run.open("a", SETTINGS)
    assert "a directory is where a file should be" in errors.explain_os_error(error.value)
    too_long = OSError(errno.ENAMETOOLONG, "x", "y" * 300)
    assert "a name is too long" in errors.explain_os_error(too_long)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOENT, "a file or directory is missing ({}): it was moved or deleted.*bring it back"),
        (errno.EIO, "the disk cannot be read or written ({}).*set CAI_OUTPUT"),
        (errno.ENOLCK, "the file system has no locks ({}): set CAI_OUTPUT to a directory on a local disk"),
        (errno.ENOTSUP, "the file system has no locks ({}): set CAI_OUTPUT to a directory on a local disk"),
        (errno.ENAMETOOLONG, "a name is too long for the file system ({}): choose a shorter one"),
        (errno.ESTALE, "replaced or moved on its network disk ({}): see that .* is mounted.*rerun"),
        (errno.ETIMEDOUT, "does not answer ({}): see that .* is mounted.*rerun"),
        (errno.ENOTCONN, "a network disk has lost its connection ({}): see that .* is mounted.*rerun"),
        (errno.ENODEV, "the disk or device is gone ({}): see that .* is mounted.*rerun"),
        (errno.EMFILE, "too many files are open in this process: raise the limit (ulimit -n"),
        (errno.EAGAIN, "no room for another process, thread or lock: end other programs.*rerun"),
        (errno.ENOMEM, "memory is used up: end other programs"),
        (errno.EROFS, "the file system is read-only ({}): set CAI_OUTPUT"),
    ],
)
def test_an_error_of_the_system_is_one_sentence_with_the_way_out(number, says, capsys):
    def fails():
        raise OSError(number, os.strerror(number), "data/\x1b[2Jx\ny")

    assert exits(fails) == cli.BAD_INPUT
    said = capsys.readouterr().err
    where, says = r"data/\x1b[2Jx\ny", says.replace("({})", "(data)")
    assert re.search(re.escape(says).replace(r"\.\*", ".*"), said.replace(where, "data")), said
    assert said.startswith("error: ") and said.count("\n") == 1


def test_locks_that_a_file_system_lacks_are_a_sentence(monkeypatch, capsys):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert exits(lambda: Run.open("a", SETTINGS)) == cli.BAD_INPUT
    assert "the file system has no locks: set CAI_OUTPUT" in capsys.readouterr().err


@pytest.mark.skipif(not (files.ROOT / ".git").exists(), reason="not a checkout")
def test_a_commit_that_git_does_not_tell_is_said(monkeypatch, capsys, output):
    with Run.open("a", SETTINGS) as run:
        assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", run.manifest["commit"])
    assert not capsys.readouterr().out
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with Run.open("a", SETTINGS) as run:
        assert run.manifest["commit"] is None
    said = capsys.readouterr().out
    assert said.startswith("commit: unknown (fatal: detected dubious ownership") and said.count("\n") == 1
    assert f"safe.directory {files.ROOT}" in said and (output / "logs/a.log").read_text() == said
    monkeypatch.setenv("PATH", "")
    with Run.open("b", SETTINGS):
        assert "commit: unknown ([Errno 2] No such file or directory: 'git')" in capsys.readouterr().out


def test_every_file_name_that_is_made_of_a_runs_name_fits(output):
    longest = "a" * LONGEST_NAME + "/" + "b" * LONGEST_NAME
    with Run.open(longest, SETTINGS) as run:
        run.log("it fits")
    for fresh in (True, True):
        Run.open("c" * LONGEST_NAME, SETTINGS, fresh=fresh).__exit__()
    for name in ("a" * 260, "a/" + "b" * 260, longest + "b"):
        with pytest.raises(UserError, match=f"has at most {LONGEST_NAME} letters"):
            Run.open(name, SETTINGS)


def test_no_two_runs_share_a_lock_or_a_log(output):
    names = ("a/b", "a-b", "a.b", "a_b")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(Run.open(name, SETTINGS)).log(name)
    logs = {path.read_text() for path in (output / "logs").glob("*.log")}
    assert logs == {f"{name}\n" for name in names}


@pytest.mark.parametrize("second", ["evaluation", "steps", "Evaluation", "run.json", "pairs.jsonl", "x.png"])
def test_no_run_lies_where_another_keeps_its_files(output, second):
    with pytest.raises(UserError, match="run 'a' keeps files of its own there"):
        Run.open(f"a/{second}", SETTINGS)
    assert not (output / "data").exists()


def test_a_stage_of_a_plan_may_be_called_evaluation(output):
    """As in six-stage: the plan's own run measures nothing."""
    with Run.open("plan", SETTINGS) as run:
        run.record(plan="hash")
        Run.open("plan/evaluation", SETTINGS).__exit__()


def test_write_json_is_whole_or_not_at_all(output, monkeypatch):
    path = output / "x.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_manifest_of_another_format_is_refused_and_the_command_named(output):
    with Run.open("a/b", SETTINGS) as run:
        assert run.manifest["format"] == FORMAT == 2
    path = output / "data/a/b/run.json"
    manifest = json.loads(path.read_text())
    command = "python scripts/runs.py --convert a/b "
    for other, said, way_out in ((None, 1, command), ("2", 2, command), (3, 3, "a newer one has written it")):
        changed = {k: v for k, v in manifest.items() if k != "format"} | ({"format": other} if other else {})
        path.write_text(json.dumps(changed))
        for ask in (
            lambda: Run.open("a/b", SETTINGS),
            lambda: Run.reopen("a/b"),
            lambda: read_manifest("a/b"),
        ):
            with pytest.raises(UserError, match=rf"of format {said}.* reads 2: {way_out}"):
                ask()
    path.write_text(json.dumps(manifest))
    Run.open("a/b", SETTINGS).__exit__()


def test_a_run_is_opened_again_as_it_is_and_locked(output):
    with pytest.raises(UserError, match="there is no run 'a'.*generate it first"):
        Run.reopen("a")
    with Run.open("a", SETTINGS), pytest.raises(UserError, match="in use by another process"):
        Run.reopen("a")
    with Run.reopen("a") as run:
        assert run.settings == SETTINGS and run.dollars == 0.0
        with pytest.raises(UserError, match="in use by another process"):
            Run.open("a", SETTINGS)


def test_a_reached_budget_and_an_interruption_have_exit_statuses_of_their_own(capsys):
    def spent():
        raise BudgetReached("it would pass it")

    assert exits(spent) == cli.BUDGET == 4 and capsys.readouterr().err == "budget: it would pass it\n"
    assert exits(lambda: (_ for _ in ()).throw(KeyboardInterrupt)) == cli.INTERRUPTED == 130
    assert "the same command resumes" in capsys.readouterr().err
