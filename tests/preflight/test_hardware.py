"""Hardware detection, with an nvidia-smi of our own on PATH and disks of any size."""

import collections
import dataclasses
import json
import os
import sys

import pytest
from cai.core.files import ROOT
from cai.models import device, fit
from cai.models.registry import REGISTRY
from cai.preflight import checkup, hardware, packages
from cai.preflight.checkup import FAIL, OK, UNCHECKED, WARN

A100 = "NVIDIA A100-SXM4-80GB, 580.95.05, 81920, 81000, 8.0"
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "RUNPOD_POD_ID")
CACHE_VARIABLES += ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "VENV_DIR", "CC")


@pytest.fixture(autouse=True)
def no_machine(tmp_path, monkeypatch):
    """A machine with no GPU, no volume, an empty model cache, plenty of disk, and what Triton wants."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in CACHE_VARIABLES:
        monkeypatch.setenv(name, "")  # as good as unset, and restored whatever a test sets
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "VOLUME", tmp_path / "no-volume")
    monkeypatch.setattr(device, "MOUNTS", tmp_path / "no-mounts")
    monkeypatch.setattr(hardware, "COMPAT", tmp_path / "compat")
    monkeypatch.setattr(hardware.sysconfig, "get_path", lambda name, scheme: str(tmp_path / name))
    (tmp_path / "include").mkdir()
    (tmp_path / "include/Python.h").touch()
    program(tmp_path, "gcc")
    disk(monkeypatch, 500)


def program(tmp_path, name):
    tool = tmp_path / "bin" / name
    tool.parent.mkdir(exist_ok=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    return tool


def smi(tmp_path, *rows, header="CUDA Version: 13.0", status=0):
    """A fake nvidia-smi: answers the query with rows, and a bare call with a header."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    said = f"{chr(10).join(rows)!r} if len(sys.argv) > 1 else {header!r}"
    tool.write_text(f"#!{sys.executable}\nimport sys\nprint({said})\nsys.exit({status})\n")
    tool.chmod(0o755)


def disk(monkeypatch, free_gb):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(device.shutil, "disk_usage", lambda path: usage(10**12, 0, free_gb * 1e9))


def by_name(rows):
    return {row.what: row for row in rows}


def test_hidden_gpus_are_named_and_the_cpus_memory_counts(tmp_path, monkeypatch):
    smi(tmp_path, A100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    rows = by_name(hardware.report())
    assert rows["gpu in use"].status == WARN and "CUDA_VISIBLE_DEVICES" in rows["gpu in use"].found
    assert "main memory" in rows["memory for model"].found and "sandbox" in rows["memory for model"].found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    rows = by_name(hardware.report())
    assert "gpu in use" not in rows and "Qwen/Qwen2.5-32B" in rows["memory for model"].found
    assert hardware.package_set() == "cuda"  # the packages are the machine's, hidden or not


def test_a_download_goes_on_from_what_the_cache_has_and_another_commit_is_none_of_it(tmp_path, monkeypatch):
    spec = REGISTRY["Qwen/Qwen2.5-0.5B"]
    place = device.cache_dir() / "models--Qwen--Qwen2.5-0.5B"
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (place / "snapshots" / ("0" * 40) / "model.safetensors").write_text("x")
    whole = fit.disk_fit(spec, 16).need
    assert whole == pytest.approx(0.49 * 2 * 1.05)
    (place / "blobs").mkdir()
    with open(place / "blobs/1.incomplete", "wb") as f:
        f.truncate(400_000_000)
    assert fit.disk_fit(spec, 16).need == pytest.approx(whole - 0.4)
    (place / "blobs/1.incomplete").unlink()
    (place / "snapshots" / ("0" * 40)).rename(place / "snapshots" / spec.revision)
    assert fit.disk_fit(spec, 16).need == 0


def test_a_machine_without_nvidia_smi_is_a_cpu_machine():
    assert hardware.package_set() == "cpu"
    assert [(row.what, row.status) for row in hardware.gpu_rows()] == [("gpu", UNCHECKED)]


def test_an_a100_is_read_with_memory_capability_driver_and_cuda(tmp_path):
    smi(tmp_path, A100)
    [gpu], reason = device.gpus()
    assert (gpu.name, gpu.driver) == ("NVIDIA A100-SXM4-80GB", "580.95.05")
    assert (gpu.capability, gpu.bf16) == ((8, 0), True)
    assert gpu.memory == 81920 * 2**20 and gpu.free == 81000 * 2**20 and reason == ""
    rows = by_name(hardware.gpu_rows())
    assert hardware.package_set() == "cuda"
    assert {name: row.status for name, row in rows.items()} == dict.fromkeys(
        ("gpu 0", "bf16", "driver", "compiler"), OK
    )
    assert rows["driver"].found == "580.95.05, CUDA 13.0"


def test_two_gpus_make_two_rows(tmp_path):
    smi(tmp_path, A100, A100)
    assert [row.what for row in hardware.gpu_rows()] == ["gpu 0", "gpu 1", "bf16", "driver", "compiler"]


def test_a_gpu_before_ampere_has_no_bf16(tmp_path):
    smi(tmp_path, "Tesla V100, 580.95.05, 16384, 16000, 7.0")
    assert by_name(hardware.gpu_rows())["bf16"].status == WARN


def test_fields_that_a_driver_does_not_know_are_read_as_unknown(tmp_path):
    smi(tmp_path, "GRID, 580.95.05, [N/A], [N/A], [N/A]")
    [gpu], _ = device.gpus()
    assert (gpu.memory, gpu.capability, gpu.bf16) == (0.0, None, False)


@pytest.mark.parametrize(
    "header, driver, packages, status",
    [
        (
            "CUDA Version: 13.1",
            "550.54.15",
            "cuda",
            OK,
        ),  # a compatibility library speaks for the older driver
        ("CUDA Version: 12.4", "550.54.15", "cuda12", WARN),
        ("CUDA Version: 12.8", "570.124.06", "cuda12", WARN),
        ("CUDA UMD Version: 13.0", "590.1", "cuda", OK),
        ("no header", "580.65", "cuda", OK),
        ("no header", "575.57", "cuda12", WARN),
        ("CUDA Version: 11.8", "520.61", "cuda12", FAIL),
        ("no header", "515.1", "cuda12", FAIL),
    ],
)
def test_the_driver_says_which_packages_and_what_does_not_work(tmp_path, header, driver, packages, status):
    smi(tmp_path, f"NVIDIA A100, {driver}, 81920, 81000, 8.0", header=header)
    row = by_name(hardware.gpu_rows())["driver"]
    assert (hardware.package_set(), row.status) == (packages, status)
    assert ("rent a machine with driver 580" in row.do) == (status != OK)
    assert ("vLLM does not run" in row.found) == (status == WARN)


def test_an_older_driver_has_no_build_of_torch_for_blackwell(tmp_path):
    gpu = "NVIDIA GeForce RTX 5090, 570.124, 32607, 32000, 12.0"
    smi(tmp_path, gpu, header="CUDA Version: 12.8")
    assert by_name(hardware.gpu_rows())["driver"].status == FAIL
    smi(tmp_path, gpu.replace("570", "580"), header="CUDA Version: 13.0")
    assert by_name(hardware.gpu_rows())["driver"].status == OK


def test_the_compatibility_library_is_named_where_nvidia_documents_it_and_found(tmp_path, monkeypatch):
    def do(name):
        smi(tmp_path, f"{name}, 550.54.15, 81920, 81000, 8.0", header="CUDA Version: 12.4")
        return by_name(hardware.gpu_rows())["driver"].do

    a100, geforce = "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090"
    assert "apt-get install cuda-compat-13-0" in do(a100) and "LD_LIBRARY_PATH" in do(a100)
    assert all(
        "cuda-compat-13-0" in do(f"NVIDIA {name}") for name in ("H100 80GB HBM3", "H200", "L40S", "A40")
    )
    assert "cuda-compat" not in do(geforce) and "cuda-compat" not in do("NVIDIA RTX A6000")
    (tmp_path / "compat").mkdir()
    (tmp_path / "compat/libcuda.so.1").touch()
    assert "is here and not used: export LD_LIBRARY_PATH=" in do(a100)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/x:{tmp_path / 'compat'}")
    assert "is in LD_LIBRARY_PATH, and is not used" in do(a100) and "export" not in do(a100)


def test_what_triton_compiles_with_is_missed_before_anything_is_installed(tmp_path, monkeypatch, capsys):
    smi(tmp_path, A100)
    (tmp_path / "bin/gcc").unlink()
    row = by_name(hardware.gpu_rows())["compiler"]
    assert row.status == FAIL and row.do.endswith("install -y gcc")
    (tmp_path / "include/Python.h").unlink()
    monkeypatch.setattr(sys, "argv", ["hardware", "--before-install", "cuda"])
    assert hardware.main() == 2
    said = capsys.readouterr().err
    assert f"apt-get install -y gcc python3.{sys.version_info.minor}-dev" in said and "packages" not in said
    program(tmp_path, "clang")
    assert "a C compiler" not in by_name(hardware.gpu_rows())["compiler"].found
    monkeypatch.setenv("CC", "my-cc")
    program(tmp_path, "clang").unlink()
    assert "a C compiler" in by_name(hardware.gpu_rows())["compiler"].found
    program(tmp_path, "my-cc")
    assert "a C compiler" not in by_name(hardware.gpu_rows())["compiler"].found


def test_a_driver_that_does_not_answer_warns_and_is_no_gpu(tmp_path):
    smi(tmp_path, "Failed to initialize NVML: Driver/library version mismatch", status=18)
    [row] = hardware.gpu_rows()
    assert row.status == WARN and "version mismatch" in row.found and hardware.package_set() == "cpu"


def test_the_cache_is_where_the_hub_library_says(tmp_path, monkeypatch):
    assert device.cache_dir() == tmp_path / "home/.cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(device.cache_dir()) == "/x/huggingface/hub"
    monkeypatch.setenv("HF_HOME", "/h")
    assert str(device.cache_dir()) == "/h/hub"
    monkeypatch.setenv("HF_HUB_CACHE", "/c")
    assert str(device.cache_dir()) == "/c"


def test_the_cache_settles_on_the_volume_unless_the_user_chose(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNPOD_POD_ID", "pod")
    device.settle_cache()
    assert os.environ["HF_HOME"] == "" and hardware.cache_row().status == WARN
    monkeypatch.setattr(device, "VOLUME", tmp_path)
    device.settle_cache()
    assert os.environ["HF_HOME"] == str(tmp_path / "huggingface")
    assert hardware.cache_row().status == OK and "outlives" in hardware.cache_row().found
    monkeypatch.setenv("HF_HOME", "/chosen")
    device.settle_cache()
    assert os.environ["HF_HOME"] == "/chosen" and hardware.cache_row().status == WARN


def test_a_token_under_the_home_directory_is_found_when_the_cache_is_on_the_volume(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "VOLUME", tmp_path)
    assert not device.hub_token()
    token = tmp_path / "home/.cache/huggingface/token"
    token.parent.mkdir(parents=True)
    token.write_text("")
    assert not device.hub_token()
    token.write_text("hf_x")
    assert device.hub_token()
    device.settle_cache()
    assert os.environ["HF_HOME"] == str(tmp_path / "huggingface") and device.hub_token()
    assert os.environ["HF_TOKEN_PATH"] == str(token)


def test_a_gpu_without_a_token_is_told_of_the_gated_guard_in_time(tmp_path, monkeypatch):
    assert "hub token" not in by_name(hardware.report())
    smi(tmp_path, A100)
    row = by_name(hardware.report())["hub token"]
    assert row.status == WARN and "Llama-Guard" in row.found and "hf auth login" in row.do
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert hardware.token_row().status == OK
    monkeypatch.setenv("HF_TOKEN", " ")
    assert hardware.token_row().status == WARN
    place = device.cache_dir() / "models--meta-llama--Llama-Guard-3-8B/snapshots"
    place = place / REGISTRY["meta-llama/Llama-Guard-3-8B"].revision
    place.mkdir(parents=True)
    (place / "model.safetensors").touch()
    assert hardware.token_row().status == OK


# ---- where the environment lies ----


def mounts(tmp_path, monkeypatch, *lines):
    (tmp_path / "mounts").write_text("".join(f"{line} rw 0 0\n" for line in lines))
    monkeypatch.setattr(device, "MOUNTS", tmp_path / "mounts")


def test_a_network_disk_is_known_by_the_mount_that_holds_a_path(tmp_path, monkeypatch):
    place = os.path.realpath(tmp_path)
    mounts(
        tmp_path,
        monkeypatch,
        "overlay / overlay",
        f"mfs#host:9421 {place}/net fuse",
        f"/dev/sda {place}/net/local ext4",
        f"x {place}/with\\040space nfs4",
        f"y {place}/root fuse.fuse-overlayfs",
        f"z {place}/twice nfs",
        f"z {place}/twice ext4",
    )
    kinds = {
        name: device.network_disk(tmp_path / name)
        for name in ("net/a/b", "net/local/c", "with space", "root", "elsewhere", "network", "twice")
    }
    assert kinds == dict.fromkeys(kinds) | {"net/a/b": "fuse", "with space": "nfs4"}
    monkeypatch.setattr(device, "MOUNTS", tmp_path / "none")
    assert device.network_disk(tmp_path / "net") is None


def test_the_environment_leaves_a_network_disk_unless_it_is_there_or_was_placed(tmp_path, monkeypatch):
    checkout, home = tmp_path / "volume/align", tmp_path / "home"
    checkout.mkdir(parents=True)
    monkeypatch.setattr(device, "ROOT", checkout)
    place = os.path.realpath(tmp_path)
    assert device.environment_dir(".venv") == checkout / ".venv"
    mounts(tmp_path, monkeypatch, f"v {place}/volume fuse")
    moved = device.environment_dir(".venv")
    assert (
        moved.is_relative_to(home)
        and moved.name == ".venv"
        and device.environment_dir("b") == moved.parent / "b"
    )
    mounts(tmp_path, monkeypatch, f"v {place} nfs")  # the home directory as well
    assert device.environment_dir(".venv") == checkout / ".venv"
    monkeypatch.setenv("VENV_DIR", "~/envs")
    assert device.environment_dir(".venv") == home / "envs/.venv"
    monkeypatch.setenv("VENV_DIR", "")
    (checkout / ".venv").symlink_to("../gone")
    assert device.environment_dir(".venv") == checkout / "../gone"
    (checkout / ".venv").unlink()
    (checkout / ".venv").mkdir()
    assert device.environment_dir(".venv") == checkout / ".venv"


def test_the_table_says_where_the_environment_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "ROOT", tmp_path)
    monkeypatch.setattr(hardware, "ROOT", tmp_path)
    assert hardware.environment_row() == checkup.Row("environment", OK, str(tmp_path / ".venv"))
    (tmp_path / ".venv").mkdir()
    mounts(tmp_path, monkeypatch, f"v {os.path.realpath(tmp_path)} nfs")
    row = hardware.environment_row()
    assert row.status == WARN and "network disk (nfs)" in row.found
    monkeypatch.setenv("VENV_DIR", "/proc/elsewhere")
    assert "by the link .venv" in hardware.environment_row().found


def model(name="Qwen/Qwen2.5-32B", bits=4, must_fit=True):
    return by_name(hardware.model_rows(REGISTRY[name], bits, must_fit=must_fit))


def test_the_32b_in_4_bits_asks_for_the_ready_repository_and_fits_an_a100(tmp_path):
    smi(tmp_path, A100)
    rows = model()
    assert {row.status for row in rows.values()} == {OK}
    assert "unsloth/Qwen2.5-32B-bnb-4bit" in rows["disk for model"].found
    assert ", 21 GB to fetch" in rows["disk for model"].found  # of 65 in 16 bits


def test_too_little_disk_fails_only_for_a_model_that_was_asked_for(tmp_path, monkeypatch):
    smi(tmp_path, A100)
    disk(monkeypatch, 15)
    assert model()["disk for model"].status == FAIL and "HF_HOME" in model()["disk for model"].do
    assert model(must_fit=False)["disk for model"].status == WARN
    assert "--bits 4" in model(bits=16)["disk for model"].do


def test_the_disk_for_vllm_is_named_where_it_would_run(tmp_path, monkeypatch):
    smi(tmp_path, A100)
    assert by_name(hardware.report())["disk for vLLM"].status == OK
    disk(monkeypatch, 70)  # of 69 for the weights, and 14
    row = by_name(hardware.report())["disk for vLLM"]
    assert row.status == WARN and "environment (14 GB)" in row.found and "--engine local" in row.do
    assert "disk for vLLM" not in by_name(hardware.report(REGISTRY["sandbox"]))
    smi(tmp_path, A100.replace("580.95", "550.54"), header="CUDA Version: 12.4")
    assert "disk for vLLM" not in by_name(hardware.report())


def test_a_model_in_the_cache_needs_no_disk_unless_its_download_was_cut_short(tmp_path, monkeypatch):
    disk(monkeypatch, 0)
    place = device.cache_dir() / "models--unsloth--Qwen2.5-32B-bnb-4bit"
    (place / "snapshots/abc").mkdir(parents=True)
    (place / "snapshots/abc/model.safetensors").write_text("x")
    assert model()["disk for model"].status == OK
    (place / "blobs").mkdir()
    (place / "blobs/123.incomplete").write_text("")
    assert model()["disk for model"].status == FAIL


def test_too_little_gpu_memory_names_the_bits_that_fit(tmp_path):
    smi(tmp_path, "NVIDIA RTX A6000, 580.95.05, 49140, 48000, 8.6")
    row = model(bits=16)["memory for model"]
    assert row.status == FAIL and "--bits 8" in row.do
    smi(tmp_path, "NVIDIA RTX 3060, 580.95.05, 12288, 12000, 8.6")
    row = model(bits=4)["memory for model"]
    assert row.status == FAIL and "smaller --model" in row.do


def test_without_a_gpu_a_large_model_is_held_against_main_memory(monkeypatch):
    sixteen_gb = {"SC_PHYS_PAGES": 16 * 10**6, "SC_PAGE_SIZE": 1000}
    monkeypatch.setattr(hardware.os, "sysconf", sixteen_gb.get)
    assert model("Qwen/Qwen2.5-32B", 16)["memory for model"].status == FAIL
    assert model("Qwen/Qwen2.5-1.5B", 16)["memory for model"].status == WARN  # it fits, slowly
    assert model("sandbox", 16)["memory for model"].status == OK


def test_a_model_of_unknown_size_is_not_checked(tmp_path):
    known = REGISTRY["Qwen/Qwen2.5-7B"]
    unknown = dataclasses.replace(known, name="a/b", repo="a/b", parameters=0.0)
    rows = hardware.model_rows(unknown, 16, must_fit=True)
    assert [row.status for row in rows] == [UNCHECKED, UNCHECKED]


def test_too_little_disk_for_the_packages_fails(monkeypatch):
    disk(monkeypatch, 2)
    assert hardware.space_row("cpu").status == FAIL
    disk(monkeypatch, 4)
    assert (hardware.space_row("cpu").status, hardware.space_row("cuda").status) == (OK, FAIL)


def test_a_table_has_a_line_a_row_and_one_for_what_to_do():
    table = checkup.table([checkup.Row("a", OK, "fine"), checkup.Row("b", FAIL, "bad", "mend it")])
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines == ["a ok fine", "b fail bad", "-> mend it"]


def test_a_check_that_breaks_is_a_failed_row_with_its_traceback(tmp_path, capsys):
    report = checkup.Report()
    assert not report.check("broken", lambda: 1 / 0)
    assert report.check("well", lambda: checkup.Row("well", OK, "yes"))
    assert report.finish(tmp_path / "deep/report.json") == 2
    saved = json.loads((tmp_path / "deep/report.json").read_text())
    assert [row["status"] for row in saved["rows"]] == [FAIL, OK]
    assert "1 / 0" in saved["tracebacks"]["broken"]
    assert "fail: broken: ZeroDivisionError" in capsys.readouterr().out


# ---- packages ----


def test_the_cpu_set_takes_its_versions_from_the_cuda_set():
    cuda, cpu = packages.pins("cuda"), packages.pins("cpu")
    assert {"torch", "unsloth", "trl", "bitsandbytes", "torchvision"} <= cuda.keys()
    assert {"torch", "unsloth", "unsloth-zoo", "trl", "bitsandbytes", "rich"} <= cpu.keys()
    assert "torchvision" not in cpu  # a CUDA build that breaks beside a CPU torch
    assert all(cuda[name] == version for name, version in cpu.items() if name in cuda)


def test_the_cuda_12_set_is_the_cuda_set_with_other_builds_of_torch():
    assert packages.pins("cuda12") == packages.pins("cuda")
    text = (ROOT / "requirements-cuda12.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    index = f"--extra-index-url https://download.pytorch.org/whl/{packages.BUILDS['cuda12'][0]}"
    builds = [f"{name}=={packages.pins('cuda')[name]}+cu126" for name in ("torch", "torchvision")]
    assert lines == [index, "-r requirements.txt", *builds]


def test_every_line_of_the_cpu_file_is_pinned_somewhere():
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    names = [line for line in lines if line and line[0] not in "#-"]
    assert len(packages.pins("cpu")) == len(names) + len(packages.BESIDE_THE_CPU_FILE)


def test_a_missing_and_a_wrong_package_are_named(monkeypatch):
    def version(name):
        if name == "trl":
            raise packages.importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "peft" else packages.pins("cpu")[name] + ("+cpu" if name == "torch" else "")

    monkeypatch.setattr(packages.importlib.metadata, "version", version)
    pinned = packages.pins("cpu")["peft"]
    assert sorted(packages.misfits("cpu")) == [f"peft is 0.1, pinned {pinned}", "trl is missing"]
    assert hardware.packages_row("cpu").status == FAIL


@pytest.mark.parametrize(
    "installed, kind, suits",
    [
        ("2.13.0+cpu", "cpu", True),
        ("2.13.0+cpu", "cuda", False),
        ("2.13.0", "cuda", True),
        ("2.13.0+cu130", "cuda", True),
        ("2.13.0+cu126", "cuda", False),
        ("2.13.0+cu126", "cuda12", True),
        ("2.13.0", "cuda12", False),
        ("2.13.0", "cpu", False),
    ],
)
def test_a_torch_of_the_other_kind_does_not_suit(monkeypatch, installed, kind, suits):
    monkeypatch.setattr(packages.sys, "platform", "linux")
    monkeypatch.setattr(packages.importlib.metadata, "version", lambda name: installed)
    assert packages.torch_suits(kind) is suits
