"""A run on servers, killed with SIGKILL at random requests: the client, and the server under it."""

import os
import random
import signal
import socket
import subprocess
import sys

import pytest
from cai.core.files import ROOT
from cai.core.jsonl import read
from cai.core.schema import RECORD_KEYS
from rows import alike
from sandbox_server import SandboxServer
from served_records import make


def client(output, limit, *urls):
    env = os.environ | {"CAI_OUTPUT": str(output), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "tests/served_records.py"), str(limit), *urls]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def records(output):
    rows = read(output / "data/served/records.jsonl", RECORD_KEYS)
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.fixture
def undisturbed(base, tmp_path, monkeypatch):
    """limit -> the records of a run that nobody kills."""

    def made(limit):
        monkeypatch.setenv("CAI_OUTPUT", str(tmp_path / "whole"))
        with SandboxServer(base) as server:
            return {row["id"]: row for row in make(limit, [server.url])}

    return made


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_client_that_is_killed_resumes(base, undisturbed, tmp_path, times):
    limit, rng, kills = 4 + 2 * times, random.Random(times), 0
    with SandboxServer(base) as server:
        for moment in sorted(rng.randrange(10, 10 + 7 * limit // times) for _ in range(times)):
            process = client(tmp_path, limit, server.url)
            first = len(server.requests)
            server.came = lambda n, at=first + moment, it=process: n == at and it.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
        server.came = lambda n: None
        _, said = (last := client(tmp_path, limit, server.url)).communicate()
    assert last.returncode == 0, said
    assert kills > times / 2
    assert alike(records(tmp_path), undisturbed(limit))


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_server_that_is_killed_costs_tries_and_nothing_else(undisturbed, tmp_path, monkeypatch, times):
    limit, rng = 4 + 3 * times, random.Random(times)
    wanted = undisturbed(limit)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    moments = [str(rng.randrange(12, 30)) for _ in range(times)]
    command = [sys.executable, str(ROOT / "tests/sandbox_server.py"), "--port", str(port)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += ["--kill-after", *moments]
    piped = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, env=env, cwd=ROOT, **piped)
    try:
        url = process.stdout.readline().strip()
        monkeypatch.setenv("CAI_OUTPUT", str(tmp_path / "killed"))
        made = {row["id"]: row for row in make(limit, [url])}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert alike(made, wanted) and alike(records(tmp_path / "killed"), wanted)
    assert process.stdout.read().count(url) > times / 2  # it was there again so often
