"""The preflight, whole on this machine, and its parts."""

import http.server
import importlib.util
import json
import subprocess
import sys
import threading

import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.models import device
from cai.preflight import hardware
from cai.preflight.checkup import FAIL, OK, UNCHECKED, WARN, Report, Row

SCRIPT = ROOT / "scripts/preflight.py"


@pytest.fixture(scope="module")
def preflight():
    spec = importlib.util.spec_from_file_location("preflight", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path / "out"))


def in_process(preflight, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["preflight.py", *flags])
    return preflight.main()


# ---- the whole ----


def test_the_whole_preflight_runs_milestone_0(offline, tmp_path):
    out = tmp_path / "report.json"
    command = [sys.executable, SCRIPT, "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    report = json.loads(out.read_text())
    rows = {row["what"]: row for row in report["rows"]}
    wrong = {name: row for name, row in rows.items() if row["status"] == FAIL and name != "packages"}
    assert not wrong and done.returncode in (0, 2), done.stdout + done.stderr
    assert (done.returncode == 2) == (rows["packages"]["status"] == FAIL)
    assert rows["model hub"]["status"] == UNCHECKED
    assert "one DPO step" in rows["sandbox"]["found"] and "loss 0.69" in rows["sandbox"]["found"]
    assert all(row["what"] in done.stdout and row["found"] in done.stdout for row in report["rows"])


def test_without_a_gpu_it_says_what_it_could_not_look_at(preflight, offline, monkeypatch, tmp_path, capsys):
    for module in (hardware, device):
        monkeypatch.setattr(module, "gpus", lambda: ([], "no nvidia-smi on this machine"))
    monkeypatch.setattr(hardware, "misfits", lambda kind: [])
    monkeypatch.setattr(hardware, "torch_suits", lambda kind: True)
    assert in_process(preflight, monkeypatch, "--skip-sandbox") == 0
    said = capsys.readouterr().out
    assert "not checked: gpu" in said and "not checked: sandbox" in said
    [report] = (tmp_path / "out/logs").glob("preflight-*.json")
    assert json.loads(report.read_text())["gpus"] == []


def test_a_model_that_was_asked_for_and_does_not_fit_fails(preflight, offline, monkeypatch, capsys):
    gpu = device.Gpu("small", "580.1", 8e9, 8e9, (8, 0))
    monkeypatch.setattr(device, "visible_gpus", lambda: [gpu])
    monkeypatch.setattr(preflight, "torch_row", lambda: Row("torch", OK, "as if"))
    assert in_process(preflight, monkeypatch, "--model", "Qwen/Qwen2.5-32B", "--skip-sandbox") == 2
    assert "fail: memory for model" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--json", " "], "--json is empty"),
        (["--bits", "5"], "--bits 5: choose 4, 8 or 16"),
        (["--model", "nothing"], "--model 'nothing' is neither"),
    ],
)
def test_bad_input_is_a_sentence(preflight, offline, monkeypatch, flags, sentence):
    with pytest.raises(UserError) as error:
        in_process(preflight, monkeypatch, *flags)
    assert sentence in str(error.value)


def test_what_a_library_says_does_not_command_the_terminal(offline, tmp_path, capsys):
    report = Report()
    report.add(Row("sandbox", FAIL, "\x1b[2Jgone", "\x9b31m"))
    report.finish(tmp_path / "report.json")
    said = capsys.readouterr().out
    assert said.count(r"\x1b[2Jgone") == 2 and r"\x9b31m" in said and not set("\x1b\x9b") & set(said)


# ---- the hub ----


def test_the_hub_is_not_asked_when_offline(preflight, offline):
    assert preflight.hub_row().status == UNCHECKED


@pytest.mark.parametrize("answer, status", [(200, OK), (405, OK), (503, WARN)])
def test_a_hub_that_answers_and_one_that_is_broken(preflight, monkeypatch, answer, status):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *args):
            """Says nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        assert preflight.hub_row().status == status
    finally:
        server.shutdown()
        server.server_close()
    assert preflight.hub_row().status == WARN  # nobody listens any more


# ---- Milestone 0 on the sandbox ----


def fake_milestone(monkeypatch, preflight, status, training=None, stderr=""):
    def run(command, *, env, **more):
        data = preflight.Path(env["CAI_OUTPUT"], "data/single")
        data.mkdir(parents=True)
        (data / "run.json").write_text(json.dumps({"training": training} if training else {}))
        return subprocess.CompletedProcess(command, status, "", stderr)

    monkeypatch.setattr(preflight.subprocess, "run", run)


def test_the_sandbox_row_takes_go_and_no_go_for_a_path_that_works(preflight, monkeypatch):
    trained = {"before": {"loss": 0.6931}, "after": {"loss": 0.5}}
    for status in (0, 3):
        fake_milestone(monkeypatch, preflight, status, trained)
        row = preflight.sandbox_row()
        assert row.status == OK and row.found.endswith("loss 0.6931 -> 0.5000")


def test_the_sandbox_row_fails_without_a_step_and_with_an_error(preflight, monkeypatch):
    fake_milestone(monkeypatch, preflight, 3)
    assert preflight.sandbox_row().status == FAIL
    fake_milestone(monkeypatch, preflight, 2, stderr="warning\nerror: the GPU has no memory left\n")
    row = preflight.sandbox_row()
    assert (row.status, row.found) == (FAIL, "error: the GPU has no memory left")
