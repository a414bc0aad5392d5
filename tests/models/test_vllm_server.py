"""A server of our own, with a stand-in for vLLM: what it is told, and that it never outlives its use."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.models import device, vllm_environment, vllm_process, vllm_server, vllm_settings
from cai.models.device import Gpu
from cai.models.fit import Fit, beside_gb, memory_fit
from cai.models.registry import REGISTRY
from cai.models.vllm_process import end, running, stop_running
from cai.models.vllm_server import VllmServer, precision_of, serving_bits
from cai.models.vllm_settings import (
    check_deterministic,
    child_environment,
    command,
    lora_rank,
    utilization,
    write_stops,
)

SANDBOX, BIG, GUARD = (REGISTRY[n] for n in ("sandbox", "Qwen/Qwen2.5-32B", "meta-llama/Llama-Guard-3-8B"))
A100 = Gpu("NVIDIA A100 80GB PCIe", "580.1", 85.9e9, 85.2e9, (8, 0))
T4 = Gpu("Tesla T4", "580.1", 15.8e9, 15.6e9, (7, 5))

# ---- settings ----


def told(spec, bits, gpu=A100, **more):
    about = {"beside_gb": 0.0, "host": "127.0.0.1", "port": 8000, "rank": 32, "adapters": {}}
    about |= {"deterministic": False, "stops": Path("/s")} | more
    return " ".join(command(Path("/e/bin/python"), spec, Path("/w"), bits, gpu=gpu, **about))


BEGINS = (
    "/e/bin/python -m vllm.entrypoints.openai.api_server --model /w --served-model-name {} --host 127.0.0.1 "
    "--port 8000 --max-model-len {} --enable-prefix-caching --generation-config /s --max-logprobs 20 "
    "--logprobs-mode raw_logprobs{} --enable-lora --max-lora-rank 32 --max-loras 1 --max-cpu-loras 8{} "
    "--max-num-seqs 256 --disable-uvicorn-access-log"
)
HEAD = ' --hf-overrides {"head_dtype": "float32"}'
BASE = " --chat-template {{ raise_exception('a base model has no chat template: use /v1/completions') }}"


@pytest.mark.parametrize(
    ("bits", "more", "ends"),
    [
        (8, {}, "--load-format safetensors --quantization fp8_per_block --linear-backend marlin" + HEAD),
        (16, {}, "--load-format safetensors" + HEAD),
        (16, {"deterministic": True}, "--load-format safetensors --attention-backend FLASH_ATTN"),
        (4, {}, "--quantization bitsandbytes --load-format bitsandbytes" + HEAD),
    ],
)
def test_the_whole_command_line_on_a_gpu(bits, more, ends):
    share = "--dtype bfloat16 --gpu-memory-utilization 0.92 --max-num-batched-tokens 2048"
    begins = BEGINS.format(BIG.name, 4096, BASE, "")
    assert told(BIG, bits, **more) == f"{begins} {share} {ends}"


def test_the_whole_command_line_of_the_cpu_build_with_adapters():
    begins = BEGINS.format("sandbox", 1024, BASE, " --lora-modules a=/x b=/y")
    assert told(SANDBOX, 16, None, adapters={"a": Path("/x"), "b": Path("/y")}) == (
        f"{begins} --dtype float32 --load-format safetensors --enforce-eager --no-enable-chunked-prefill "
        "--max-num-batched-tokens 8192"
    )


def test_an_instruct_model_keeps_its_template_and_an_old_gpu_gets_float16():
    line = told(REGISTRY["Qwen/Qwen2.5-0.5B-Instruct"], 16, T4)
    assert "--chat-template" not in line and "--dtype float16" in line
    assert "trust-remote-code" not in line + told(BIG, 8) and "--api-key" not in line


def test_the_share_of_the_gpu_leaves_room_for_another_model():
    assert utilization(A100, 0.0) == 0.92
    assert utilization(A100, 18.1) == 0.77  # (85.2 - 18.1 - 0.5) / 85.9
    assert utilization(replace(A100, free=40e9), 0.0) == 0.45  # what another process has taken


def test_a_guard_that_is_loaded_by_then_is_not_left_its_memory_twice(monkeypatch):
    """As when a server that has ended is started again in the middle of Milestone 3."""
    import torch

    monkeypatch.setattr(vllm_server, "cuda_major", lambda: 13)
    monkeypatch.setattr(vllm_server, "gpu_to_serve_on", lambda: replace(A100, free=85.2e9 - 17.5e9))
    server = VllmServer(BIG, 8, beside_gb=beside_gb(GUARD))
    with pytest.raises(UserError, match="44 GB of GPU memory with vLLM, 42 GB can be had beside 20 GB"):
        server._check_memory()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 17 * 10**9)
    server._check_memory()


def test_beside_a_server_a_guard_finds_its_memory_free():
    """The server's context, and this process's own, are in no sum of vLLM's."""
    share, contexts = utilization(A100, beside_gb(GUARD)), 1.0
    left = A100.free / 1e9 - share * A100.memory / 1e9 - contexts
    assert left > memory_fit(GUARD, 16, 0, gpu=True).need + 1


@pytest.mark.parametrize(
    ("spec", "asked", "free", "beside", "bits"),
    [
        (BIG, None, 85.2, 0.0, 8),  # 16 bits fit, but with a cache of a few rows
        (BIG, 16, 85.2, 0.0, 16),
        (BIG, None, 85.2, 18.1, 8),  # beside Llama Guard
        (BIG, None, 141.0, 0.0, 16),
        (BIG, None, 48.0, 0.0, 4),
        (BIG, None, 42.3, 0.0, 4),
        (REGISTRY["Qwen/Qwen2.5-7B"], None, 85.2, 0.0, 16),
        (REGISTRY["Qwen/Qwen2.5-7B"], None, 24.0, 0.0, 8),
        (SANDBOX, None, 8.0, 0.0, 16),
        (SANDBOX, 4, 8.0, 0.0, 4),
    ],
)
def test_the_precision_that_fits(spec, asked, free, beside, bits):
    assert serving_bits(spec, asked, free, beside_gb=beside) == bits


@pytest.mark.parametrize(
    ("asked", "free", "beside", "said"),
    [
        (
            None,
            24.0,
            0.0,
            "in 4 bits needs about 28 GB of GPU memory with vLLM, 22 GB can be had: use --engine local",
        ),
        (16, 80.0, 0.0, "in 16 bits needs about 74 GB of GPU memory with vLLM, 74 GB can be had: use 8 bits"),
        (8, 85.2, 40.0, "38 GB can be had beside 40 GB for another model: use 4 bits"),
    ],
)
def test_what_does_not_fit_is_a_sentence_with_figures_and_the_way_out(asked, free, beside, said):
    with pytest.raises(UserError) as error:
        serving_bits(BIG, asked, free, beside_gb=beside)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("bits", "gpu", "said"),
    [
        (16, None, "for CUDA GPUs alone"),
        (16, T4, "begin with compute capability 8.0, Tesla T4 has 7.5"),
        (8, A100, "take 16-bit weights, not 8 bits: use --engine-bits 16"),
        (4, A100, "not 4 bits"),
    ],
)
def test_deterministic_is_refused_where_vllm_has_no_kernels_for_it(bits, gpu, said):
    with pytest.raises(UserError, match=said):
        check_deterministic(bits, gpu)
    check_deterministic(16, A100)


def test_the_childs_environment_has_no_secrets_and_no_telemetry(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET", "PYTHONPATH", "VLLM_BATCH_INVARIANT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("CAI_API_KEY", raising=False)
    env = child_environment(gpu=A100, host="127.0.0.1", deterministic=False)
    assert not {"HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET", "PYTHONPATH", "VLLM_BATCH_INVARIANT"} & env.keys()
    assert env.keys() >= {"PATH", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"} and "VLLM_API_KEY" not in env
    assert env["HF_HUB_OFFLINE"] == "1"  # what it serves was fetched and checked here
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1" and "VLLM_CPU_KVCACHE_SPACE" not in env
    assert env["VLLM_USE_FLASHINFER_SAMPLER"] == "0"  # or the machine's nvcc compiles it at the start
    monkeypatch.setenv("CAI_API_KEY", "k")
    env = child_environment(gpu=None, host="0.0.0.0", deterministic=True)
    assert env["VLLM_API_KEY"] == "k" and env["VLLM_BATCH_INVARIANT"] == "1" and "CAI_API_KEY" not in env
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in env and env["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_a_server_that_starts_after_a_training_has_the_environment_of_the_one_before(monkeypatch):
    """Unsloth sets dozens of variables: Triton's and Inductor's, the allocator's, Protobuf's."""
    monkeypatch.setattr(device, "_CHANGED", {})
    monkeypatch.setenv("TRITON_OWN", "the user's")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    told = {"gpu": A100, "host": "127.0.0.1", "deterministic": False}
    before = child_environment(**told)
    for _ in range(2):  # a guard is loaded, too
        with device.changing_environment():
            for name in ("TRITON_OWN", "PYTORCH_ALLOC_CONF"):
                monkeypatch.setenv(name, "a library's")
    assert child_environment(**told) == before


def test_lora_ranks_are_those_that_vllm_takes():
    assert [lora_rank([r]) for r in (1, 2, 8, 9, 32, 33, 512)] == [1, 8, 8, 16, 32, 64, 512]
    with pytest.raises(UserError, match="LoRA rank 513: vLLM serves at most 512"):
        lora_rank([8, 513])


def test_a_base_models_texts_end_at_tokens_of_a_chat_too_and_no_sampling_default_slips_in(tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    files = {
        "config.json": {"eos_token_id": 10},
        "generation_config.json": {"eos_token_id": [10, 11], "repetition_penalty": 1.1, "top_k": 20},
        "tokenizer.json": {
            "added_tokens": [
                {"id": i, "content": c} for i, c in enumerate(("<|x|>", "<|im_start|>", "<|im_end|>"), 12)
            ]
        },
    }
    for name, content in files.items():
        (weights / name).write_text(json.dumps(content))
    for kind, ends in (("base", [10, 11, 13, 14]), ("instruct", [10, 11])):
        place = write_stops(weights, replace(SANDBOX, kind=kind), tmp_path / kind)
        assert [p.name for p in place.iterdir()] == ["generation_config.json"]
        assert json.loads((place / "generation_config.json").read_text()) == {"eos_token_id": ends}


# ---- its environment ----


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A root without an environment, and a Python whose venv module makes one with the pip that `pip` is."""
    monkeypatch.delenv(vllm_environment.OWN, raising=False)
    monkeypatch.setattr(device, "ROOT", tmp_path)
    monkeypatch.setattr(vllm_environment, "ENVIRONMENT_GB", 0.0)
    pip, python = tmp_path / "pip", tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$3" = --clear ] && rm -rf "$4"\n'
        'mkdir -p "$4/bin" && cp "$(dirname "$0")/pip" "$4/bin/python"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(vllm_environment.sys, "executable", str(python))

    def place(script):
        pip.write_text(f"#!/bin/sh\n{script}\n")
        pip.chmod(0o755)
        return tmp_path / ".venv-vllm"

    return place


def test_the_environment_is_installed_once_with_its_size_said(place):
    where, said = place('echo "$@" >> "$(dirname "$0")/asked"'), []
    assert not vllm_environment.environment_ready()
    assert vllm_environment.ensure_environment(said.append) == where / "bin/python"
    assert vllm_environment.environment_ready() and "4 GB to download" in said[0]
    [asked] = (where / "bin/asked").read_text().splitlines()
    assert asked.startswith("-m pip install ") and asked.endswith(f"-r {ROOT / 'requirements-vllm.txt'}")
    vllm_environment.ensure_environment(said.append)
    assert len(said) == 1 and len((where / "bin/asked").read_text().splitlines()) == 1


def test_a_driver_of_cuda_12_is_a_sentence_before_anything_is_installed(place, monkeypatch):
    where = place("exit 0")
    monkeypatch.setattr(vllm_environment, "cuda_major", lambda: 12)
    with pytest.raises(
        UserError, match="built for CUDA 13, and this driver runs CUDA 12: use --engine local"
    ):
        vllm_environment.ensure_environment(print)
    assert not where.exists()
    monkeypatch.setenv(vllm_environment.OWN, str(where))  # who makes it by hand knows
    with pytest.raises(UserError, match="no bin/python"):
        vllm_environment.ensure_environment(print)


def test_it_lies_off_a_network_disk_as_training_does(place, tmp_path, monkeypatch):
    place("exit 0")
    monkeypatch.setenv("VENV_DIR", str(tmp_path / "local"))
    assert vllm_environment.ensure_environment(lambda text: None) == tmp_path / "local/.venv-vllm/bin/python"
    assert not (tmp_path / ".venv-vllm").exists() and vllm_environment.environment_ready()


def test_a_half_installed_environment_is_made_anew(place):
    where = place(":")
    (where / "bin").mkdir(parents=True)
    (where / "bin/python").touch(0o755)  # a kill came before the stamp
    (where / "half.py").touch()
    assert not vllm_environment.environment_ready()
    vllm_environment.ensure_environment(lambda text: None)
    assert vllm_environment.environment_ready() and not (where / "half.py").exists()


def test_other_pins_are_another_environment(place, tmp_path, monkeypatch):
    place(":")
    vllm_environment.ensure_environment(lambda text: None)
    other = tmp_path / "requirements-vllm.txt"
    other.write_text("vllm==9\n")
    monkeypatch.setattr(vllm_environment, "REQUIREMENTS", other)
    assert not vllm_environment.environment_ready()


def test_an_installation_that_fails_is_a_sentence_with_pips_reason(place):
    place('echo Collecting; echo "ERROR: No matching distribution \033[31mfor vllm"; echo "[notice]"; exit 1')
    with pytest.raises(UserError, match=r"ERROR: No matching distribution \\x1b\[31mfor vllm") as error:
        vllm_environment.ensure_environment(lambda text: None)
    assert "\n" not in str(error.value) and "use --engine local" in str(error.value)
    assert not vllm_environment.environment_ready()


@pytest.mark.parametrize(("free", "refused"), [(70.0, True), (90.0, False)])
def test_nothing_is_installed_on_the_disk_that_the_weights_lack_then(free, refused, place, monkeypatch):
    place(":")
    monkeypatch.setattr(vllm_server, "cuda_major", lambda: 13)
    monkeypatch.setattr(vllm_server, "gpu_to_serve_on", lambda: A100)
    monkeypatch.setattr(vllm_server, "disk_fit", lambda spec, bits: Fit(68.8, free))
    monkeypatch.setattr(vllm_server, "same_disk", lambda one, other: True)
    server = VllmServer(BIG, 8)
    with pytest.raises(UserError) if refused else contextlib.nullcontext() as error:
        server._check_disk()
    if refused:
        said = "weights (69 GB) and environment (14 GB) need more disk than the 70 GB that are free at"
        assert said in str(error.value)
    VllmServer(replace(BIG, repo="models/sandbox"), 8)._check_disk()  # nothing is fetched


def test_a_full_disk_and_another_installation_are_sentences(place, tmp_path, monkeypatch):
    place(":")
    with open(tmp_path / ".venv-vllm.lock", "a") as lock:
        vllm_environment.fcntl.flock(lock, vllm_environment.fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is installing vLLM"):
            vllm_environment.ensure_environment(lambda text: None)
    monkeypatch.setattr(vllm_environment, "ENVIRONMENT_GB", 1e9)
    with pytest.raises(UserError, match="vLLM's environment takes 1000000000 GB"):
        vllm_environment.ensure_environment(lambda text: None)
    assert not (tmp_path / ".venv-vllm").exists()


# ---- its life ----


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A stand-in environment, quick looks, and no server left behind."""
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I {ROOT / "tests/stand_in_vllm.py"} "$@"\n')
    python.chmod(0o755)
    for name, value in {
        vllm_environment.OWN: tmp_path / "env",
        "FAKE_VLLM_HOME": tmp_path,
        "CAI_OUTPUT": tmp_path / "out",
        "CUDA_VISIBLE_DEVICES": "",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("FAKE_VLLM", raising=False)
    monkeypatch.setattr(vllm_server, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(vllm_server, "END_SECONDS", 0.3)
    monkeypatch.setattr(vllm_server, "FIRST_PORT", own_port())
    yield tmp_path
    if state := running():
        end(state["pid"])


def own_port():
    """From here on there are free ports, which nobody's real server takes meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(home):
    return [json.loads(line) for line in (home / "started.jsonl").read_text().splitlines()]


def group(pid):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def adapter(home, name, r=8):
    path = home / name
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"r": r, "lora_alpha": 16, "peft_type": "LORA"}))
    return path


def test_it_starts_at_the_first_request_takes_adapters_and_gives_all_back(home):
    said = []
    server = VllmServer(SANDBOX, 16, log=said.append)
    server.load_adapter(adapter(home, "one"), "adapter-one")
    assert not (home / "started.jsonl").exists()
    [url] = server.urls()
    assert server.urls() == [url]  # and no second one
    [begun] = started(home)
    assert begun["argv"][begun["argv"].index("--lora-modules") + 1] == f"adapter-one={home / 'one'}"
    assert begun["env"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    state = json.loads((home / "out/logs/vllm.json").read_text())
    assert state["url"] == url and state["settings"]["model"] == "sandbox" and state["settings"]["bits"] == 16
    assert state["settings"]["revision"] == server.revision and len(server.revision) == 64

    server.load_adapter(adapter(home, "two"), "adapter-two")
    server.load_adapter(home / "two", "adapter-two")
    loaded = [json.loads(line) for line in (home / "loaded.jsonl").read_text().splitlines()]
    assert loaded == [{"lora_name": "adapter-two", "lora_path": str(home / "two")}]
    assert len(json.loads((home / "out/logs/vllm.json").read_text())["adapters"]) == 2

    processes = group(state["pid"])
    assert len(processes) >= 3  # the watchdog, the server, its engine
    server.stop()
    assert group(state["pid"]) == [] and not (home / "out/logs/vllm.json").exists()
    assert any("starting vLLM: sandbox" in line and "(assumed)" in line for line in said)
    assert "is ready after" in said[-1]

    [again] = server.urls()  # with both adapters from the start
    assert f"adapter-two={home / 'two'}" in started(home)[-1]["argv"]
    server.stop()


def test_a_larger_adapter_starts_it_anew_with_room_for_it(home):
    server = VllmServer(SANDBOX, 16, log=lambda text: None)
    server.urls()
    server.load_adapter(adapter(home, "wide", r=48), "adapter-wide")
    first, second = (begun["argv"] for begun in started(home))
    assert [argv[argv.index("--max-lora-rank") + 1] for argv in (first, second)] == ["32", "64"]
    assert server.urls() and len(started(home)) == 2
    server.stop()


def test_an_adapter_that_it_rejects_is_a_sentence(home, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "rejects")
    server = VllmServer(SANDBOX, 16, log=lambda text: None)
    server.urls()
    with pytest.raises(UserError, match=r"does not take the adapter .*No adapter .*31m found") as error:
        server.load_adapter(adapter(home, "one"), "adapter-one")
    assert "\x1b" not in str(error.value)
    with pytest.raises(UserError, match="does not take the adapter"):
        server.load_adapter(home / "one", "adapter-one")  # it is not taken for loaded
    server.stop()


def test_a_slow_start_is_waited_for_with_progress(home, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "slow")
    monkeypatch.setattr(vllm_server, "SAY_SECONDS", 0.0)
    said = []
    server = VllmServer(SANDBOX, 16, log=said.append)
    server.urls()
    assert any(r"0 s: INFO loading weights \x1b[2J" in line for line in said)
    server.stop()


def test_one_that_dies_says_why_in_a_sentence_and_leaves_nothing(home, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "dies")
    said = []
    server = VllmServer(SANDBOX, 16, log=said.append)
    with pytest.raises(UserError) as error:
        server.urls()
    sentence = str(error.value)
    assert sentence.startswith(
        "vLLM ended before it was ready (ValueError: no memory for the cache \\x1b[31m): see "
    )
    assert any("Engine core failed" in line for line in said) and "\x1b" not in "".join(said)
    assert running() is None and not (home / "out/logs/vllm.json").exists()
    monkeypatch.delenv("FAKE_VLLM")
    assert server.urls()  # the lock is free
    server.stop()


def test_a_start_that_never_ends_is_a_sentence(home, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "slow")
    monkeypatch.setattr(vllm_server, "MOST_SECONDS", 0.0)
    with pytest.raises(UserError, match="vLLM was not ready after 0 s"):
        VllmServer(SANDBOX, 16, log=lambda text: None).urls()
    assert running() is None


def test_one_that_died_is_started_again_but_not_for_ever(home, monkeypatch):
    monkeypatch.setattr(vllm_server, "MOST_DEATHS", 1)
    said = []
    server = VllmServer(SANDBOX, 16, log=said.append)
    server.urls()
    for starts in (1, 2):
        pid = running()["pid"]
        everything = [psutil.Process(member) for member in group(pid)]
        [ours] = [p for p in psutil.Process(pid).children() if "--port" in p.cmdline()]
        ours.kill()
        psutil.wait_procs(everything, timeout=60)  # the watchdog ends with it, and takes the engine along
        assert group(pid) == []
        if starts == 1:
            assert server.urls() and len(started(home)) == 2
    assert r"vLLM has ended by itself (INFO loading weights \x1b[2J): starting it again" in said
    with pytest.raises(UserError, match="vLLM has ended by itself 2 times"):
        server.urls()
    assert len(started(home)) == 2
    server.stop()


def test_a_port_in_use_is_a_sentence_or_passed_by(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is in use on 127.0.0.1"):
            VllmServer(SANDBOX, 16, port=port, log=lambda text: None).urls()
        assert not (home / "started.jsonl").exists()
    server = VllmServer(SANDBOX, 16, port=port, log=lambda text: None)
    assert server.urls() == [f"http://127.0.0.1:{port}"]
    server.stop()


def test_a_port_that_another_server_takes_meanwhile(home, monkeypatch):
    """It is not taken for ours: the next port is, but not instead of one that was asked for."""
    other = VllmServer(SANDBOX, 16, log=lambda text: None)
    [url] = other.urls()
    monkeypatch.setenv("CAI_OUTPUT", str(home / "elsewhere"))
    look, taken = vllm_server.free_port, int(url.rpartition(":")[2])
    seen = iter([taken, taken])
    monkeypatch.setattr(vllm_server, "free_port", lambda *about: next(seen, None) or look(*about))
    with pytest.raises(UserError, match="Address already in use"):
        VllmServer(SANDBOX, 16, port=taken, log=lambda text: None).urls()
    server = VllmServer(SANDBOX, 16, log=lambda text: None)
    assert server.urls() != [url] and len(started(home)) == 4
    server.stop()
    monkeypatch.setenv("CAI_OUTPUT", str(home / "out"))
    assert other.runs()
    other.stop()


def test_stop_breaks_off_what_another_thread_starts(home, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "never")
    server, ended = VllmServer(SANDBOX, 16, log=lambda text: None), []

    def start():
        with pytest.raises(UserError, match="broken off"):
            server.urls()
        ended.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    while not (home / "started.jsonl").exists():
        assert thread.is_alive()
    pid = running()["pid"]
    server.stop()
    thread.join()
    assert ended and group(pid) == [] and running() is None

    launch = server._launch
    monkeypatch.setattr(server, "_launch", lambda *about: (server.stop(), launch(*about)))
    with pytest.raises(UserError, match="broken off"):
        server.urls()  # stopped after it was looked at, before it was launched
    assert len(started(home)) == 1 and running() is None


def test_one_that_ignores_sigterm_is_killed_with_all_of_its_processes(home, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "deaf")
    server = VllmServer(SANDBOX, 16, log=lambda text: None)
    server.urls()
    pid = running()["pid"]
    server.stop()
    assert group(pid) == []


def left_behind(home, code="os.kill(os.getpid(), 9)"):
    """The state of a server that another process has started before it ran this code."""
    program = (
        "import os; from cai.models import vllm_server as v; from cai.models.registry import REGISTRY; "
        f"v.FIRST_PORT, v.LOOK_SECONDS, v.END_SECONDS = {own_port()}, 0.02, 0.3; "
        "v.ORPHAN_SECONDS = float(os.environ.get('GRACE', 60))\n"
        f"s = v.VllmServer(REGISTRY['sandbox'], 16); s.urls(); {code}"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    return done, running()


def test_a_rerun_takes_over_what_a_killed_run_has_left(home):
    done, state = left_behind(home)
    assert done.returncode == -signal.SIGKILL and state
    said = []
    server = VllmServer(SANDBOX, 16, log=said.append)
    server.load_adapter(adapter(home, "one"), "adapter-one")
    assert server.urls() == [state["url"]] and "a killed run has left" in said[0]
    assert len(started(home)) == 1 and "adapter-one" in (home / "loaded.jsonl").read_text()
    server.load_adapter(home / "one", "adapter-one")
    assert running()["owner"] == os.getpid()
    server.stop()
    assert group(state["pid"]) == []


def test_what_has_other_settings_is_ended_first(home):
    _, state = left_behind(home)
    server = VllmServer(replace(SANDBOX, max_seq_length=512), 16, log=lambda text: None)
    server.urls()
    assert group(state["pid"]) == [] and len(started(home)) == 2
    server.stop()


def test_what_nobody_takes_over_ends_by_itself(home, monkeypatch):
    monkeypatch.setenv("GRACE", "0")
    done, state = left_behind(home)
    assert done.returncode == -signal.SIGKILL
    if state:
        psutil.wait_procs([psutil.Process(pid) for pid in group(state["pid"])], timeout=60)
        assert group(state["pid"]) == []
    assert running() is None


def test_a_run_that_ends_ends_its_server(home):
    for code in ("pass", "raise SystemExit(3)", "1 / 0"):
        _, state = left_behind(home, code)
        assert state is None and not (home / "out/logs/vllm.json").exists()
    assert len(started(home)) == 3


def test_never_two_at_a_time_and_stop_ends_whosever_it_is(home):
    server = VllmServer(SANDBOX, 16, log=lambda text: None)
    [url] = server.urls()
    pid = running()["pid"]
    with pytest.raises(
        UserError, match=f"{url}, process {os.getpid()}.: use it with --engine {url}, .*serve.py --stop"
    ):
        VllmServer(SANDBOX, 16, log=lambda text: None).urls()
    assert len(started(home)) == 1
    assert stop_running() == url and group(pid) == [] and stop_running() is None
    assert not server.runs()
    server.stop()


def test_an_old_driver_and_too_little_memory_are_found_before_anything_starts(home, monkeypatch):
    monkeypatch.setattr(vllm_server, "visible_gpus", lambda: [replace(A100, free=20e9)])
    monkeypatch.setattr(vllm_server, "cuda_major", lambda: 12)
    with pytest.raises(
        UserError, match=r"vLLM needs CUDA 13 \(driver 580 or newer\), this machine has driver 580.1"
    ):
        VllmServer(BIG, 8)
    monkeypatch.setattr(vllm_server, "cuda_major", lambda: 13)
    monkeypatch.setattr(vllm_server, "fetch", lambda *_: pytest.fail("65 GB were fetched"))
    with pytest.raises(UserError, match="Qwen2.5-32B in 8 bits needs about 44 GB"):
        VllmServer(BIG, 8, log=lambda text: None).urls()
    assert not (home / "started.jsonl").exists()


def test_the_gpu_that_this_process_may_use_is_the_one_that_is_asked(home, monkeypatch):
    monkeypatch.setattr(vllm_server, "visible_gpus", lambda: [T4, A100])
    for asked, gpu in (("1", A100), ("0,1", T4), ("GPU-abc", T4), ("7", T4)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
        assert vllm_server.gpu_to_serve_on() is gpu


def test_the_precision_in_words(home, monkeypatch):
    assert precision_of(16) == "float32"  # the CPU's
    monkeypatch.setattr(vllm_server, "visible_gpus", lambda: [A100])
    said = ["NF4, bfloat16", "FP8 weights, bfloat16", "bfloat16"]
    assert [precision_of(bits) for bits in (4, 8, 16)] == said


def test_what_cannot_be_served_here_is_a_sentence(home, monkeypatch):
    with pytest.raises(UserError, match="vLLM's CPU build serves 16-bit weights alone"):
        VllmServer(SANDBOX, 8)
    for host in ("0.0.0.0", "127.gpu.example.org"):
        with pytest.raises(UserError, match=f"--host {host}: others could use this server: set CAI_API_KEY"):
            VllmServer(SANDBOX, 16, host=host)
    monkeypatch.delenv(vllm_environment.OWN)
    with pytest.raises(UserError, match="vLLM needs a CUDA GPU, and there is none here: use --engine local"):
        VllmServer(SANDBOX, 16)


def test_a_state_file_that_is_damaged_or_of_another_process_is_no_server(home):
    state = vllm_process.state_file()
    state.parent.mkdir(parents=True)
    whole = {"pid": os.getpid(), "url": "http://a:1", "owner": 1, "settings": {}, "adapters": {}}
    damaged = [whole | {"pid": pid} for pid in ("1", -5, 0, 1e30, 10**30, None)]
    texts = ["{", "[]", "[" * 200_000, '{"pid": 1}', *map(json.dumps, [whole, *damaged])]
    for text in (*texts, json.dumps(dict.fromkeys(vllm_process.STATE_KEYS, os.getpid()))):
        state.write_text(text)
        assert running() is None and stop_running() is None


def test_no_other_process_is_ended_whatever_stands_in_its_command_line(home, tmp_path):
    """An editor of the watchdog's file, and the watchdog of a server of other outputs."""
    state, elsewhere = vllm_process.state_file(), tmp_path / "elsewhere/logs/.vllm.lock"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    state.parent.mkdir(parents=True)
    vllm_process.lock_file().touch()
    program = tmp_path / "vllm_watchdog.py"
    program.write_text("import time\nprint(flush=True)\ntime.sleep(99)")
    for words in ([], [str(elsewhere)], [str(vllm_process.lock_file())]):
        command = [sys.executable, "-I", str(program), *words]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        other.stdout.readline()
        facts = {"pid": other.pid, "url": "http://a:1", "owner": 1, "settings": {}, "adapters": {}}
        state.write_text(json.dumps(facts))
        assert stop_running() == ("http://a:1" if words[:1] == [str(vllm_process.lock_file())] else None)
        ended = other.poll() is not None
        other.kill()
        other.wait()
        assert ended == (words[:1] == [str(vllm_process.lock_file())])


@pytest.mark.parametrize("who", ["stop", "rerun"])
def test_what_a_killed_watchdog_has_left_is_ended_by_stop_and_by_a_rerun(home, who):
    """As after `pkill -9 python`: vLLM's engine has another name, and holds the GPU's memory."""
    server = VllmServer(SANDBOX, 16)
    server.urls()
    pid, url = server._pid, server.url
    [engine] = [p.pid for p in psutil.Process(pid).children(recursive=True) if not p.children()]
    others = set(group(pid)) - {engine}
    server._lock.close()  # its owner was killed, too
    for each in others:
        os.kill(each, signal.SIGKILL)
    server._process.wait()
    while set(group(pid)) & others:  # a kill takes its time
        time.sleep(0.01)
    assert group(pid) == [engine]
    if who == "stop":
        assert stop_running() == url
        assert group(pid) == [] and stop_running() is None
    else:
        other = VllmServer(SANDBOX, 16, log=(said := []).append)
        other.urls()
        assert (
            group(pid) == [] and f"ended what a vLLM server whose watchdog was killed has left: {url}" in said
        )
        other.stop()
    server._pid = 0


def test_every_setting_is_one_that_is_explained():
    page = (ROOT / "specs/serving.md").read_text()
    words = {w for b in (4, 8, 16) for w in told(BIG, b, deterministic=b == 16).split() if w.startswith("--")}
    words |= {w for w in told(SANDBOX, 16, None).split() if w.startswith("--")}
    missing = [w for w in words if w not in page]
    assert not missing and vllm_settings.RANKS[-1] == 512
