"""How many threads a CPU computes with: by the flag, by OMP_NUM_THREADS, or by what others leave free. What
CUDA's allocator is told."""

import os
import subprocess
import sys

import pytest
from cai.core.cli import parser
from cai.core.files import ROOT
from cai.models import device
from cai.models.device import CpuTime, Threads, choose_threads, usable_cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of so many cores, kept busy by others for so many seconds of two, in a container or not."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    monkeypatch.setattr(device, "STAT", tmp_path / "stat")
    ticks = device.os.sysconf("SC_CLK_TCK")

    def machine(cores, others=0.0, *, ours=0.0, stat=True, load=0.0, quota=None, quota_v1=None):
        monkeypatch.setattr(device, "_own_cores", lambda: set(range(cores)))
        monkeypatch.setattr(device.os, "getloadavg", lambda: (load, 0.0, 0.0))
        for name, text in (("cpu.max", quota), ("cpu/cpu.cfs_quota_us", quota_v1)):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text or "max 100000")
        (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
        began = CpuTime(100.0, 50.0 if stat else None, 7.0)
        busy = int((50.0 + others + ours) * ticks) if stat else 0
        rows = [f"cpu{n} {busy if n == 0 else 0} 0 0 999 9 0 0 0 0 0" for n in range(cores)]
        (tmp_path / "stat").write_text("\n".join(["cpu 1 1 1", *(rows if stat else []), "intr 5"]))
        monkeypatch.setattr(device.time, "monotonic", lambda: 102.0)
        monkeypatch.setattr(device.time, "process_time", lambda: 7.0 + ours)
        return began

    return machine


@pytest.mark.parametrize(
    ("about", "chosen"),
    [
        ({"cores": 2}, "2 threads"),
        ({"cores": 2, "ours": 3.0}, "2 threads"),  # what this process computes itself
        ({"cores": 2, "others": 0.5}, "2 threads"),
        ({"cores": 2, "others": 3.6}, "1 thread: 1.8 of 2 cores are busy"),
        ({"cores": 2, "others": 2.0, "ours": 2.0}, "1 thread: 1.0 of 2 cores are busy"),
        ({"cores": 16, "others": 8.2}, "12 threads: 4.1 of 16 cores are busy"),
        ({"cores": 1, "others": 1.0}, "1 thread"),
        ({"cores": 64, "others": 80.0, "quota": "400000 100000"}, "4 threads"),
        ({"cores": 64, "quota_v1": "250000"}, "3 threads"),
        ({"cores": 4, "stat": False, "load": 2.9}, "1 thread: 2.9 of 4 cores are busy"),
        ({"cores": 4, "stat": False, "load": 9.0}, "1 thread: 4.0 of 4 cores are busy"),
    ],
)
def test_threads_are_what_others_leave_free(machine, about, chosen):
    assert str(choose_threads(machine(**about))) == chosen


@pytest.mark.parametrize("value", ["2", " 2", "2,4"])
def test_what_is_asked_for_is_taken(machine, monkeypatch, value):
    began = machine(8, 16.0)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert choose_threads(began) == Threads(2, ", as asked for")
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert choose_threads(began).number == 1


def test_the_flag_is_the_variable_and_what_torch_computes_with(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    parser("", "threads").parse_args([])
    assert device.os.environ["OMP_NUM_THREADS"] == "7"
    parser("", "threads").parse_args(["--threads", "1"])
    assert device.os.environ["OMP_NUM_THREADS"] == "1"


def test_a_loaded_model_says_its_threads_and_torch_has_as_many(base):
    import torch

    assert f", {base.threads}" in base.describe() and torch.get_num_threads() == base.threads.number


def test_waits_are_short_unless_somebody_chose(monkeypatch):
    environ = {"OMP_WAIT_POLICY": "active"}
    monkeypatch.setattr(device.os, "environ", environ)
    device.short_waits()
    assert environ == {"OMP_WAIT_POLICY": "active"}
    del environ["OMP_WAIT_POLICY"]
    device.short_waits()
    assert environ == {"GOMP_SPINCOUNT": "1000"}
    environ["GOMP_SPINCOUNT"] = "5"
    device.short_waits()
    assert environ == {"GOMP_SPINCOUNT": "5"}


def test_this_machine_says_how_long_its_cores_were_busy():
    cores = usable_cores()
    assert 1 <= cores <= (device.os.cpu_count() or 1)
    assert 0 <= CpuTime.now().busy_since()


# ---- CUDA's allocator ----


@pytest.mark.parametrize(("user", "seen"), [
    ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
    ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}),
    ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
])  # fmt: skip
def test_the_allocator_is_told_before_a_script_imports_torch(user, seen, tmp_path):
    """A torch that only says what it finds in the environment when it is imported."""
    (tmp_path / "torch.py").write_text(
        "import os, sys\n"
        "found = {k: v for k, v in os.environ.items() if 'ALLOC_CONF' in k}\n"
        "print('SEEN', found, file=sys.stderr, flush=True)\n"
        "os._exit(0)\n"
    )
    environment = {k: v for k, v in os.environ.items() if "ALLOC_CONF" not in k}
    environment |= {"PYTHONPATH": str(tmp_path), "CAI_OUTPUT": str(tmp_path / "out")} | user
    command = [sys.executable, str(ROOT / "scripts/test_single.py"), "--model", "sandbox"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert f"SEEN {seen}" in done.stderr, done.stderr
