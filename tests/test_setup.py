"""The shell scripts: their syntax, and what they do with a Python of our own that only notes its calls."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from cai.core.files import ROOT

PLACES = ("*.sh", "scripts/**/*.sh", "tests/*.sh", ".ci/run")
SHELL = sorted(path for place in PLACES for path in ROOT.glob(place))
TOOLS = "awk bash cat cksum cp date dirname env grep head ln mkdir nohup readlink rm sed setsid tail uname"

# Stands for python3 and for .venv/bin/python: notes each call of pip in $NOTES; its environment says which
# machine this is and what goes wrong.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  --version) echo "Python ${FAKE_VERSION:-3.11.9}" ;;
  "-c import sys"*) [ -z "${FAKE_VERSION:-}" ] ;;
  "-c import torch"*) exit "${FAKE_NO_TORCH:-0}" ;;
  "-m venv --clear "*)
    [ "$4" = .venv ] && echo venv >>"$NOTES" || echo "venv in $4" >>"$NOTES"
    rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
    exit "${FAKE_NO_VENV:-0}" ;;
  "-m pip --version") exit 0 ;;
  "-m pip install"*)
    shift 6
    echo "$*" >>"$NOTES"
    [ -z "${FAKE_KILL:-}" ] || kill -9 "$PPID"
    case "$*" in ${FAKE_FAIL:-nothing}) echo "ERROR: no such thing"; exit 1 ;; esac ;;
  *cai.preflight.hardware*--kind) echo "${FAKE_KIND:-cpu}" ;;
  *cai.preflight.hardware*--environment) echo "${FAKE_PLACE:-.venv}" ;;
  *cai.preflight.hardware*--versions*) exit "${FAKE_MISFIT:-0}" ;;
  *cai.preflight.hardware*--torch-suits*) exit "${FAKE_OTHER_TORCH:-0}" ;;
  *cai.preflight.hardware*--before-install*) exit "${FAKE_NO_SPACE:-0}" ;;
  *cai.preflight.hardware*) echo "table $*"; exit "${FAKE_NOT_READY:-0}" ;;
  *) echo "ran $*"; exit "${FAKE_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with no .venv, and a PATH that holds our python3 and a few tools."""
    root, tools = tmp_path / "checkout", tmp_path / "bin"
    for directory in (root / "scripts", root / "tests", root / ".ci", tools):
        directory.mkdir(parents=True)
    for file in [*SHELL, *ROOT.glob("requirements*.txt")]:
        if file.parent.name != "recipes":
            shutil.copy(file, root / file.relative_to(ROOT))
    for tool in TOOLS.split():
        (tools / tool).symlink_to(shutil.which(tool))
    (tools / "python3").write_text(PYTHON)
    (tools / "python3").chmod(0o755)
    return root


def run(root, script="setup_environment.sh", *arguments, **environment):
    notes = root / "notes"
    notes.unlink(missing_ok=True)
    env = {"PATH": str(root.parent / "bin"), "HOME": os.environ["HOME"], "NOTES": str(notes), **environment}
    command = ["bash", script, *arguments]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=60)
    done.notes = notes.read_text().splitlines() if notes.exists() else []
    return done


CPU_CALLS = [
    "venv",
    "torch==2.13.0+cpu",
    "-r requirements-cpu.txt",
    "--no-deps -c requirements.txt unsloth unsloth_zoo",
]


@pytest.mark.parametrize("script", SHELL, ids=lambda p: p.name)
def test_every_shell_script_parses(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""


def test_a_cpu_machine_gets_torchs_cpu_build_first_and_unsloth_without_its_neighbours(checkout):
    done = run(checkout)
    assert done.returncode == 0, done.stderr
    assert done.notes == CPU_CALLS
    assert done.stdout.splitlines()[-1].startswith("ready: ")
    assert "table -m cai.preflight.hardware" in done.stdout


def test_the_second_time_nothing_is_installed(checkout):
    run(checkout)
    again = run(checkout)
    assert (again.returncode, again.notes) == (0, [])
    assert again.stdout.splitlines()[-1].startswith("ready: ")


def test_torch_comes_from_pytorchs_index_where_the_plain_pin_is_not_found(checkout):
    done = run(checkout, FAKE_FAIL="torch==2.13.0+cpu")
    index = "torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu"
    assert done.returncode == 0 and done.notes == [*CPU_CALLS[:2], index, *CPU_CALLS[2:]]


def test_a_cuda_machine_gets_the_plain_requirements(checkout):
    assert run(checkout, FAKE_KIND="cuda").notes == ["venv", "-r requirements.txt"]


def test_an_older_driver_gets_torch_for_cuda_12(checkout):
    done = run(checkout, FAKE_KIND="cuda12")
    assert done.notes == ["venv", "-r requirements-cuda12.txt"] and done.returncode == 0
    done = run(checkout, FAKE_KIND="cuda", FAKE_OTHER_TORCH="1")
    assert done.notes == ["venv", "-r requirements.txt"]


def test_the_environment_is_built_where_it_is_to_lie_and_found_again(checkout):
    elsewhere = checkout.parent / "a disk/.venv"
    done = run(checkout, FAKE_PLACE=str(elsewhere))
    assert done.returncode == 0 and done.notes == [f"venv in {elsewhere}", *CPU_CALLS[1:]], done.stderr
    assert os.readlink(checkout / ".venv") == str(elsewhere) and (elsewhere / ".installed").exists()
    assert run(checkout, FAKE_PLACE=str(elsewhere)).notes == []
    done = run(checkout, VENV_DIR="/another", FAKE_PLACE="/another/.venv")
    assert done.notes == [] and "VENV_DIR is not asked" in done.stdout


def test_an_environment_that_went_with_its_disk_is_built_again_with_a_sentence(checkout):
    elsewhere = checkout.parent / "disk/.venv"
    run(checkout, FAKE_PLACE=str(elsewhere))
    shutil.rmtree(elsewhere.parent)
    done = run(checkout, FAKE_PLACE=str(elsewhere))
    assert done.returncode == 0 and done.notes == [f"venv in {elsewhere}", *CPU_CALLS[1:]]
    assert f".venv was in {elsewhere}, which is gone" in done.stdout
    shutil.rmtree(elsewhere)
    assert run(checkout, FAKE_PLACE=".venv").notes == CPU_CALLS and not (checkout / ".venv").is_symlink()


def test_a_directory_in_the_place_of_the_link_is_left_alone(checkout):
    (checkout / ".venv/bin").mkdir(parents=True)
    done = run(checkout, FAKE_PLACE=str(checkout.parent / "disk/.venv"))
    assert done.returncode == 2 and "move it away" in done.stderr and done.notes == []
    done = run(checkout, FAKE_PLACE="/proc/nothing/.venv")
    assert done.returncode == 2 and (checkout / ".venv/bin").exists()


def test_an_activated_environment_of_another_disk_does_not_build_itself(checkout):
    elsewhere = checkout.parent / "disk/.venv"
    run(checkout, FAKE_PLACE=str(elsewhere))
    (elsewhere / "bin/python").rename(elsewhere / "bin/python3")
    path = f"{elsewhere}/bin:{checkout.parent}/bin"
    done = run(checkout, PATH=path, FAKE_PLACE=str(elsewhere))
    assert f"with {checkout.parent}/bin/python3" in done.stdout, done.stdout + done.stderr


def test_a_gpu_that_torch_does_not_see_is_an_error(checkout):
    done = run(checkout, FAKE_KIND="cuda", FAKE_NO_TORCH="1")
    assert done.returncode == 2 and "torch sees no GPU" in done.stderr
    assert run(checkout, FAKE_KIND="cuda").returncode == 0


def test_dev_adds_the_test_tools_once(checkout):
    assert run(checkout, "setup_environment.sh", "--dev").notes == [*CPU_CALLS, "-r requirements-dev.txt"]
    assert run(checkout, "setup_environment.sh", "--dev").notes == []


def test_changed_requirements_and_foreign_versions_are_installed_again(checkout):
    run(checkout)
    with open(checkout / "requirements-cpu.txt", "a") as f:
        f.write("# changed\n")
    assert run(checkout).notes == CPU_CALLS[1:]
    assert run(checkout, FAKE_MISFIT="1").notes == CPU_CALLS[1:]


def test_a_venv_with_the_other_machines_torch_is_built_anew(checkout):
    run(checkout)
    assert run(checkout, FAKE_KIND="cuda", FAKE_OTHER_TORCH="1").notes == ["venv", "-r requirements.txt"]


def test_what_pip_cannot_install_is_named_and_a_rerun_goes_on(checkout):
    done = run(checkout, FAKE_FAIL="*requirements-cpu.txt")
    assert done.returncode == 2 and "could not install the CPU set" in done.stderr
    assert "ERROR: no such thing" in done.stderr and "ready" not in done.stdout
    again = run(checkout)
    assert again.returncode == 0 and again.notes == CPU_CALLS[1:]


def test_a_venv_in_which_an_installation_was_killed_is_built_anew(checkout):
    killed = run(checkout, FAKE_KILL="1")
    assert killed.returncode != 0 and killed.notes[:2] == CPU_CALLS[:2]
    assert (checkout / ".venv/.installing").exists()
    assert run(checkout).notes == CPU_CALLS
    assert not (checkout / ".venv/.installing").exists()


def test_a_half_made_venv_is_built_anew(checkout):
    (checkout / ".venv/bin").mkdir(parents=True)
    assert run(checkout).notes == CPU_CALLS


def test_an_old_python_is_named_with_the_way_out(checkout):
    done = run(checkout, FAKE_VERSION="3.9.2")
    assert done.returncode == 2 and "found: python3 (Python 3.9.2)" in done.stderr
    assert "apt-get install" in done.stderr and done.notes == []


def test_no_python_at_all(checkout):
    (checkout.parent / "bin/python3").unlink()
    done = run(checkout)
    assert done.returncode == 2 and "found: none" in done.stderr


def test_a_python_without_venv_is_an_error_with_the_way_out(checkout):
    done = run(checkout, FAKE_NO_VENV="1")
    assert done.returncode == 2 and "python3-venv" in done.stderr


@pytest.mark.parametrize("place", ["my tools/python3", "a*b/python3", "-x y/python3"])
def test_a_python_with_a_space_in_its_path_is_used(checkout, place):
    named = checkout.parent / place
    named.parent.mkdir()
    (checkout.parent / "bin/python3").rename(named)
    done = run(checkout, "setup_environment.sh", "--check", PYTHON=str(named))
    assert done.returncode == 0 and "table -m cai.preflight.hardware" in done.stdout, done.stderr
    done = run(checkout, PYTHON=str(named))
    assert done.returncode == 0 and f"making .venv with {named}" in done.stdout and done.notes == CPU_CALLS


def test_a_python_that_is_not_there_is_named(checkout):
    done = run(checkout, PYTHON="/a path/python3")
    assert done.returncode == 2 and "PYTHON=/a path/python3 is no program that can be run" in done.stderr
    assert done.notes == []


def test_no_space_stops_before_anything_is_installed(checkout):
    done = run(checkout, FAKE_NO_SPACE="2")
    assert done.returncode == 2 and done.notes == []


def test_a_model_that_does_not_fit_is_not_ready(checkout):
    done = run(checkout, "setup_environment.sh", "--model", "a b", "--bits", "16", FAKE_NOT_READY="2")
    assert done.returncode == 2 and "ready:" not in done.stdout
    assert "--model a b --bits 16" in done.stdout


def test_check_installs_nothing(checkout):
    done = run(checkout, "setup_environment.sh", "--check")
    assert (done.returncode, done.notes) == (0, []) and not (checkout / ".venv").exists()


def test_an_unknown_argument_and_a_missing_value_are_errors(checkout):
    assert "unknown argument --frob" in run(checkout, "setup_environment.sh", "--frob").stderr
    done = run(checkout, "setup_environment.sh", "--model")
    assert done.returncode == 2 and "--model needs a value" in done.stderr


def test_help_names_every_flag(checkout):
    done = run(checkout, "setup_environment.sh", "--help")
    assert done.returncode == 0 and "set -euo" not in done.stdout
    assert all(flag in done.stdout for flag in ("--model", "--bits", "--dev", "--check", "PYTHON="))


def test_speedrun_goes_through_the_milestones_and_ends_with_their_gates(checkout):
    flags = ["--model", "sandbox", "--seed", "3", "--bits=4"]
    done = run(checkout, "scripts/speedrun.sh", *flags)
    assert done.returncode == 0 and "table -m cai.preflight.hardware --model sandbox --bits 4" in done.stdout
    ran = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ran ")]
    scripts = ("test_single.py", "test_batch.py", "generate_mvp.py")
    gates = ["scripts/runs.py", "single", "batch", "mvp"]
    assert ran == [*([f"scripts/{s}", *flags] for s in scripts), gates]


@pytest.mark.parametrize(("arguments", "says"), [
    (["--nosuch"], "--nosuch is no flag of speedrun.sh: it takes --model"),
    (["--seed", "3", "--run", "x"], "--run is no flag"),
    (["--forecast"], "--forecast is no flag"),
    (["--mode", "x"], "--mode is no flag"),
    (["sandbox"], "sandbox belongs to no flag"),
    (["--fresh", "yes"], "yes belongs to no flag"),
    (["--seed", "3", "4"], "4 belongs to no flag"),
    (["--fresh=yes"], "--fresh=yes takes no value"),
    (["--model"], "--model needs a value"),
    (["--model", "--fresh"], "--model needs a value"),
    (["--seed", ""], "--seed needs a value"),
    (["-x\x1b[2J"], "belongs to no flag"),
])  # fmt: skip
def test_speedrun_refuses_what_no_milestone_takes_before_set_up_begins(checkout, arguments, says):
    done = run(checkout, "scripts/speedrun.sh", *arguments)
    assert done.returncode == 2 and says in done.stderr and "\x1b" not in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == "" and done.notes == []


def test_speedrun_takes_the_flags_that_all_milestones_have(checkout):
    flags = ["--set", "beta=0.2", "shots=0", "--seed=-1", "--budget", "5", "--hourly-rate", "-1"]
    flags += ["--constitution", "my own.yaml", "--model", "a b", "--bits", "4", "--fresh"]
    done = run(checkout, "scripts/speedrun.sh", *flags)
    assert done.returncode == 0 and "table -m cai.preflight.hardware --model a b --bits 4" in done.stdout
    known = re.search(r"known='(.*)'", (ROOT / "scripts/speedrun.sh").read_text())[1].split()
    helped = run(checkout, "scripts/speedrun.sh", "--help")
    assert helped.returncode == 0 and all(flag in helped.stdout for flag in known)
    for script in ("test_single.py", "test_batch.py", "generate_mvp.py"):
        command = [sys.executable, ROOT / "scripts" / script, "--help"]
        shown = subprocess.run(command, capture_output=True, text=True).stdout
        assert all(f"[{flag} " in shown or f"[{flag}]" in shown for flag in known), script


def test_speedrun_stops_at_a_no_go_and_passes_its_status_on(checkout):
    done = run(checkout, "scripts/speedrun.sh", FAKE_STATUS="3")
    assert done.returncode == 3 and "ran scripts/test_batch.py" not in done.stdout
    assert done.stdout.splitlines()[-1] == "ran scripts/runs.py single"  # the others are no runs yet


def test_speedrun_says_and_passes_by_what_is_undecided(checkout):
    done = run(checkout, "scripts/speedrun.sh", FAKE_STATUS="5")
    said = done.stdout.splitlines()
    assert done.returncode == 5 and said[-1] == "ran scripts/runs.py single batch mvp"
    assert "ran scripts/test_single.py" in said
    assert "ran scripts/test_batch.py --force" in said and "ran scripts/generate_mvp.py --force" in said
    assert sum("is UNDECIDED: too few cases to tell" in line for line in said) == 3


def test_speedrun_stops_where_set_up_fails(checkout):
    done = run(checkout, "scripts/speedrun.sh", FAKE_NO_SPACE="2")
    assert done.returncode == 2 and "ran " not in done.stdout


@pytest.mark.parametrize(
    "arguments, asked",
    [
        ([], "-m pytest -q -m not slow"),
        (["--slow"], "-m pytest -q -m slow"),
        (["tests/test_loop.py", "-k", "resume"], "-m pytest -q -m not slow tests/test_loop.py -k resume"),
    ],
)
def test_the_test_command_lints_and_passes_arguments_and_status_on(checkout, arguments, asked):
    run(checkout)
    ruff = checkout / ".venv/bin/ruff"
    ruff.write_text("#!/usr/bin/env bash\necho linted\n")
    ruff.chmod(0o755)
    done = run(checkout, "tests/run.sh", *arguments, FAKE_STATUS="1")
    assert done.returncode == 1 and done.notes == ["-r requirements-dev.txt"]
    assert done.stdout.splitlines()[-2:] == ["linted", f"ran {asked}"]


# ---- unattended.sh ----


RUNPODCTL = """#!/usr/bin/env bash
case "$*" in
  ${FAKE_CTL:-nothing}) exit 1 ;;
  *get*) ;;
  *) echo "$*" >>"$NOTES" ;;
esac
"""


@pytest.fixture
def pod(checkout):
    """A runpodctl that notes what it is asked; FAKE_CTL is a form of its command that it does not know."""
    tool = checkout.parent / "bin/runpodctl"
    tool.write_text(RUNPODCTL)
    tool.chmod(0o755)
    return checkout


def unattended(root, *command, **environment):
    """The script with a command, and its log once that has ended."""
    done = run(root, "scripts/unattended.sh", *command, RUNPOD_POD_ID="pod1", **environment)
    if found := re.search(r"kill -- -(\d+)", done.stdout):
        deadline = time.monotonic() + 30
        while os.path.exists(f"/proc/{found[1]}") and time.monotonic() < deadline:
            time.sleep(0.01)
    notes = root / "notes"
    done.notes = notes.read_text().splitlines() if notes.exists() else []
    done.log = "".join(log.read_text() for log in root.glob("logs/unattended-*.log"))
    return done


@pytest.mark.parametrize("status", [0, 3])
def test_the_pod_is_stopped_when_the_command_ends_whatever_its_status(pod, status):
    done = unattended(pod, "bash", "-c", f"echo 'a b'; exit {status}")
    assert done.returncode == 0 and done.notes == ["stop pod pod1"] and done.stderr == ""
    assert done.log.splitlines() == ["a b", f"exit status {status}; stopping pod pod1"]


def test_a_newer_runpodctl_is_asked_in_its_own_words_and_a_failure_is_said(pod):
    assert unattended(pod, "bash", "-c", "exit 0", FAKE_CTL="stop*").notes == ["pod stop pod1"]
    done = unattended(pod, "bash", "-c", "exit 0", FAKE_CTL="*")
    assert done.notes == [] and "could not be stopped" in done.log
    assert "warning: runpodctl cannot look at pod pod1" in done.stderr  # in time


def test_where_there_is_no_pod_to_stop_nothing_is_started(pod):
    done = run(pod, "scripts/unattended.sh", "bash", "-c", "echo ran")
    assert done.returncode == 2 and "RUNPOD_POD_ID is not set" in done.stderr and not (pod / "logs").exists()
    done = unattended(pod, "no-such-program")
    assert done.returncode == 2 and "is no program" in done.stderr and done.notes == []
    (pod.parent / "bin/runpodctl").unlink()
    assert "no runpodctl" in unattended(pod, "bash", "-c", "echo ran").stderr
    assert run(pod, "scripts/unattended.sh").returncode == 2


def test_this_checkouts_own_table():
    """The real thing, on this machine."""
    done = subprocess.run(
        ["bash", "setup_environment.sh", "--check", "--model", "sandbox"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "python " in done.stdout and "memory for model" in done.stdout
    assert done.returncode in (0, 2) and (done.returncode == 2) == (" fail " in done.stdout)
