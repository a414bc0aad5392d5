"""scripts/serve.py as a person runs it, on a stand-in for vLLM: said, served, ended; bad input."""

import json
import os
import signal
import subprocess
import sys

import pytest
from cai.core.files import ROOT
from processes import begin, script


@pytest.fixture
def output(tmp_path, monkeypatch):
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I {ROOT / "tests/stand_in_vllm.py"} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("CAI_VLLM_ENV", str(tmp_path / "env"))
    monkeypatch.setenv("FAKE_VLLM_HOME", str(tmp_path))
    monkeypatch.delenv("CAI_API_KEY", raising=False)
    yield tmp_path / "out"
    script("serve.py", "--stop", output=tmp_path / "out")


def until(process, word):
    said = []
    for line in process.stdout:
        said.append(line)
        if word in line:
            return "".join(said)
    raise AssertionError(f"it ended without {word!r}: {''.join(said)}{process.stderr.read()}")


def test_it_says_what_it_serves_and_ctrl_c_ends_it(output):
    process = begin("serve.py", "--model", "sandbox", output=output)
    said = until(process, "--engine ")
    state = json.loads((output / "logs/vllm.json").read_text())
    for part in (
        "sandbox - asked for by --model",
        "float32",
        "1024 tokens",
        "here already",
        "for tests",
        "is ready",
    ):
        assert part in said
    assert f"serving sandbox at {state['url']}; Ctrl-C ends it" in said
    assert said.endswith(f"python scripts/generate_mvp.py --model sandbox --engine {state['url']}\n")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and "ended the server" in out
    assert not (output / "logs/vllm.json").exists()
    assert "no vLLM server of ours runs here" in script("serve.py", "--stop", output=output).stdout


def test_stop_ends_it_from_elsewhere_and_another_is_refused_meanwhile(output):
    process = begin("serve.py", "--model", "sandbox", output=output)
    until(process, "--engine ")
    url = json.loads((output / "logs/vllm.json").read_text())["url"]
    second = script("serve.py", "--model", "sandbox", output=output)
    assert second.returncode == 2 and f"use it with --engine {url}" in second.stderr
    assert "Traceback" not in second.stderr and second.stderr.count("\n") == 1
    stopped = script("serve.py", "--stop", output=output)
    assert stopped.returncode == 0 and f"ended the server at {url}" in stopped.stdout
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and "the server was ended" in out


def test_one_that_ends_by_itself_is_an_error(output):
    process = begin("serve.py", "--model", "sandbox", output=output)
    until(process, "--engine ")
    os.kill(json.loads((output / "logs/vllm.json").read_text())["pid"], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 2 and "the server has ended by itself: see " in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--port", "0"], "--port 0: must be from 1 to 65535"),
        (["--port", "x"], "'x' is no whole number"),
        (["--bits", "8"], "vLLM's CPU build serves 16-bit weights alone"),
        (["--deterministic"], "batch-invariant kernels for CUDA GPUs alone"),
        (["--host", "0.0.0.0"], "set CAI_API_KEY"),
        (["--model", "nobody"], "neither in the registry"),
        (["--beside", "nobody"], "--beside 'nobody' is neither in the registry"),
        (["--adapter", "mvp"], "write NAME=RUN"),
        (["--adapter", "sandbox=mvp"], "write NAME=RUN"),
        (["--adapter", "a=mvp"], "holds no adapter of ours"),
        (["--adapter", "a=../x"], "use letters, digits"),
        (["--set", "context=3"], "write name=value"),
    ],
)
def test_bad_input_is_a_sentence_before_anything_starts(output, args, said):
    done = script("serve.py", "--model", "sandbox", *args, output=output)
    assert done.returncode == 2 and said in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not (output.parent / "started.jsonl").exists()


def test_a_machine_without_a_gpu_is_told_so(output, monkeypatch):
    monkeypatch.delenv("CAI_VLLM_ENV")
    done = script("serve.py", "--model", "sandbox", output=output)
    assert done.returncode == 2 and "vLLM needs a CUDA GPU, and there is none here" in done.stderr
    assert "bash tests/vllm.sh" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--bogus"], "unknown argument --bogus"),
        (["--examples"], "--examples needs a value"),
        (["--environment", "/nowhere"], "no bin/python in it that can import vllm"),
    ],
)
def test_wrong_use_of_the_test_with_real_vllm_is_a_sentence(args, said):
    done = subprocess.run(["bash", ROOT / "tests/vllm.sh", *args], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_real_vllm_that_cannot_be_installed_is_skipped_with_the_reason(tmp_path):
    """In a copy, whose Python makes an environment with a pip that fails."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/vllm.sh").write_text((ROOT / "tests/vllm.sh").read_text())
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    fails = "#!/bin/sh\necho ERROR: no such distribution; exit 1\n"
    python.write_text(
        '#!/bin/sh\nmkdir -p "$4/bin"\ncat > "$4/bin/python" <<END\n'
        + fails
        + 'END\nchmod +x "$4/bin/python"\n'
    )
    python.chmod(0o755)
    done = subprocess.run(["bash", tmp_path / "tests/vllm.sh"], capture_output=True, text=True)
    assert done.returncode == 77 and "ERROR: no such distribution" in done.stdout.splitlines()[-1]
    assert done.stdout.splitlines()[-1].startswith("skipped: vLLM for CPUs could not be installed")
