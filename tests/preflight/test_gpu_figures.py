"""scripts/benchmark.py gpu: every section at a tiny size, with a server that is none."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from cai.core.cli import BAD_INPUT
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.models import device
from cai.models.engine import Completion
from cai.preflight import gpu_figures, measurements
from cai.preflight.gpu_figures import GpuFigures, Scale
from cai.preflight.gpu_table import markdown
from cai.preflight.random_weights import SHAPES

SCRIPT = ROOT / "scripts/benchmark.py"
LEAST = Scale((1, 2), 4, (32, 48))
GPU = device.Gpu("NVIDIA A100-SXM4-80GB", "580.1", 85.9e9, 15.9e9, (8, 0))


@pytest.fixture
def figures(tmp_path):
    def of(scale=LEAST, **more):
        said = []
        place = (tmp_path / "logs/benchmark-gpu.json", tmp_path / "scratch")
        made = GpuFigures("tiny", scale, *place, log=said.append, **more)
        made.said = said
        return made

    return of


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(device, "visible_gpus", lambda: [GPU])


class FakeServer:
    """A server that starts, and an engine that answers; what is asked of them, in order."""

    def __init__(self, monkeypatch, fails=()):
        self.events, self.fails = [], fails
        monkeypatch.setattr(gpu_figures, "VllmServer", self.server)
        monkeypatch.setattr(gpu_figures, "ServerEngine", self.engine)
        monkeypatch.setattr(gpu_figures, "precision_of", lambda bits: f"{bits} bits, as if")
        monkeypatch.setattr(gpu_figures, "serving_bits", lambda spec, bits, memory: bits)

    def server(self, spec, bits, *, log):
        files = {path.name for path in gpu_figures.Path(spec.repo).iterdir()}
        config = json.loads((gpu_figures.Path(spec.repo) / "config.json").read_text())
        assert "tokenizer.json" in files and ("quantization_config" in config) == (bits == 4)

        def urls():
            self.events.append(f"start {bits}")
            if bits in self.fails:
                raise UserError(f"no room for {bits} bits")
            return ["http://127.0.0.1:1"]

        return SimpleNamespace(urls=urls, stop=lambda: self.events.append(f"stop {bits}"))

    def engine(self, spec, server, tokenizer, *, bits, precision, revision, device, noise, log):
        assert noise and precision == f"{bits} bits, as if" and device == GPU.name

        async def complete(prompt, sampling, seed, adapter=None):
            return Completion("w", sampling.max_tokens, len(tokenizer(prompt)["input_ids"]), "length")

        return SimpleNamespace(complete=complete)


def test_all_sections_measure_and_keep_what_they_find(figures, base, tmp_path):
    made = figures()
    made.measure(gpu_figures.SECTIONS)
    kept = json.loads(made.path.read_text())
    assert kept == json.loads(json.dumps(made.facts)) and kept["gpu"] is None and kept["versions"]["torch"]
    assert kept["load"]["parameters"] == SHAPES["tiny"].parameters and kept["load"]["memory_rate"] > 1e8
    rows = kept["local NF4"]["generation"]
    assert [x["rows"] for x in rows] == [1, 2] and all(0 < x["tokens"] <= 4 * x["rows"] for x in rows)
    assert all(x["tokens_per_second"] < x["limit"] for x in rows)
    assert kept["local NF4"]["first_token"]["cached_seconds"] > 0
    trained = kept["train"]
    assert list(trained) == ["1 x 8, 32", "1 x 8, 48", "4 x 2, 32", "4 x 2, 48"]
    assert all(x["fits"] and x["loss"] == pytest.approx(0.6931, abs=1e-3) for x in trained.values())
    assert "needs a GPU" in kept["vLLM FP8"]["not_measured"]
    assert list((tmp_path / "scratch").iterdir()) == []  # the random weights are gone
    page = markdown(kept)
    assert "Qwen/Qwen2.5-32B on a GPU: not yet measured" in page
    assert "| 48 | 4 x 2 |" in page and "under 80 GB: not yet measured" in page

    again = figures()  # what is there is neither loaded nor measured again
    again.measure(("load", "generate", "train"))
    assert "model" not in again.__dict__ and again.facts == kept
    longer = figures(Scale((1, 2), 4, (32, 48, 56)))
    longer.measure(("train",))
    assert longer.facts["train"].keys() - trained.keys() == {"1 x 8, 56", "4 x 2, 56"}
    assert longer.facts["train"]["1 x 8, 32"] == trained["1 x 8, 32"]
    assert longer.facts["local NF4"] == kept["local NF4"]
    assert "load" not in figures(fresh=True).facts


def test_figures_of_another_gpu_or_driver_are_not_gone_on_with(figures, monkeypatch, gpu):
    made = figures()
    made._keep("train", {"1 x 8, 32": {"tokens": 32, "fits": False, "batch": 1}})
    assert "train" in figures().facts
    other = device.Gpu(GPU.name, "590.2", GPU.memory, GPU.free, GPU.capability)
    monkeypatch.setattr(device, "visible_gpus", lambda: [other])
    assert "train" not in figures().facts and figures().facts["driver"] == "590.2"


# ---- the server ----


def test_a_server_is_measured_in_each_precision_and_then_stopped(figures, gpu, monkeypatch, tmp_path):
    server, made = FakeServer(monkeypatch), figures()
    made.measure(("vllm",))
    assert server.events == ["start 8", "stop 8", "start 16", "stop 16", "start 4", "stop 4"]
    for name in ("vLLM FP8", "vLLM 16 bits", "vLLM 4 bits"):
        found = made.facts[name]
        assert [x["rows"] for x in found["generation"]] == [1, 2] and found["first_token"]["new_seconds"] > 0
        assert found["memory_bytes"] == pytest.approx(70e9)
        assert found["generation"][0]["prompt_tokens"] == pytest.approx(measurements.PROMPT_TOKENS, rel=0.02)
    assert list((tmp_path / "scratch").iterdir()) == []
    figures().measure(("vllm",))
    assert len(server.events) == 6


def test_a_server_that_does_not_start_is_said_and_tried_again(figures, gpu, monkeypatch):
    server, made = FakeServer(monkeypatch, fails=[16]), figures()
    made.measure(("vllm",))
    assert server.events == ["start 8", "stop 8", "start 16", "stop 16", "start 4", "stop 4"]
    assert made.facts["vLLM 16 bits"]["not_measured"] == "no room for 16 bits"
    assert "not yet measured: no room for 16 bits" in markdown(made.facts)
    server.fails = []
    again = figures()
    again.measure(("vllm",))
    assert server.events[6:] == ["start 16", "stop 16"]
    assert "not_measured" not in again.facts["vLLM 16 bits"]


def test_nothing_is_written_for_a_precision_that_cannot_fit(figures, gpu, monkeypatch):
    server, written = FakeServer(monkeypatch), []
    whole = measurements.random_checkpoint

    def fits(spec, bits, memory):
        if bits != 4:
            raise UserError("too large")

    monkeypatch.setattr(gpu_figures, "serving_bits", fits)
    monkeypatch.setattr(
        measurements, "random_checkpoint", lambda *place: written.append(place[1]) or whole(*place)
    )
    made = figures()
    made.measure(("vllm",))
    assert written == [4] and server.events == ["start 4", "stop 4"]
    assert made.facts["vLLM FP8"]["not_measured"] == "too large"


def test_the_local_model_is_gone_before_a_server_starts(figures, gpu, monkeypatch):
    server, made = FakeServer(monkeypatch), figures()
    made.__dict__["model"] = SimpleNamespace()
    start = server.server
    monkeypatch.setattr(
        gpu_figures, "VllmServer", lambda *a, **k: start(*a, **k) if "model" not in made.__dict__ else None
    )
    made.measure(("vllm",))
    assert len(server.events) == 6


# ---- memory that does not suffice ----


def test_a_training_that_does_not_fit_is_noted_and_longer_ones_are_left_out(figures, monkeypatch, base):
    import torch

    made, asked = figures(Scale((1,), 4, (32, 48, 56))), []
    model = SimpleNamespace(adapters={"default": ""}, tokenizer=base.tokenizer, spec=base.spec)
    model.model = SimpleNamespace(peft_config={"default": 0, "ref": 0})
    model.model.delete_adapter = lambda name: model.model.peft_config.pop(name)
    made.__dict__["model"] = model

    def train(model, pairs, settings, output):
        tokens = len(base.tokenizer(pairs[0]["prompt"] + pairs[0]["chosen"])["input_ids"])
        asked.append((settings.batch_size, tokens))
        model.model.peft_config["ref"] = 0
        if settings.batch_size == 4 and tokens > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [{"loss": 0.6931}]

    monkeypatch.setattr(measurements, "train_dpo", train)
    made.measure(("train",))
    assert {key: x["fits"] for key, x in made.facts["train"].items()} == {
        "1 x 8, 32": True, "1 x 8, 48": True, "1 x 8, 56": True, "4 x 2, 32": True, "4 x 2, 48": False,
    }  # fmt: skip
    assert model.model.peft_config == {"default": 0}  # in nobody's way
    assert "| 48 | 4 x 2 | does not fit | - |" in markdown(made.facts)
    figures(Scale((1,), 4, (32, 48, 56))).measure(("train",))  # needs no model: all is known


def test_other_errors_of_a_training_are_errors(monkeypatch, base):
    def train(*args):
        raise RuntimeError("a defect")

    monkeypatch.setattr(measurements, "train_dpo", train)
    model = SimpleNamespace(adapters={"default": ""}, tokenizer=base.tokenizer, spec=base.spec)
    with pytest.raises(RuntimeError, match="a defect"):
        measurements.dpo_step(model, 32, 1, 0)


# ---- the table ----


def test_the_table_has_shares_of_the_limit_and_the_largest_setting_under_80_gb():
    def step(batch, tokens, peak):
        row = {"tokens": tokens, "batch": batch, "accumulation": 8 // batch, "fits": True}
        return row | {"step_seconds": 12.5, "loss": 0.69, "peak_bytes": peak}

    steps = [step(1, 2048, 40e9), step(1, 4096, 52e9), step(4, 1024, 60e9), step(4, 2048, 90e9)]
    row = {"rows": 64, "tokens_per_second": 1500.0, "limit": 2400.0, "peak_bytes": None}
    found = {"generation": [row], "memory_bytes": 70e9, "start_seconds": 200.0}
    found["first_token"] = {"prompt_tokens": 528, "new_seconds": 0.25, "cached_seconds": 0.05}
    facts = {"shape": "Qwen/Qwen2.5-32B", "gpu": GPU.name, "driver": "580.1", "time": "2026-12-01T10:00:00"}
    facts |= {"commit": "a" * 40, "versions": {"torch": "2.13.0"}, "vLLM FP8": found}
    facts |= {"train": {str(i): x for i, x in enumerate(steps)}}
    page = markdown(facts)
    assert "### Qwen/Qwen2.5-32B (random weights) on NVIDIA A100-SXM4-80GB, driver 580.1" in page
    assert "| vLLM FP8 | 64 | 1,500.0 | 62.5% | 70.0 GB | 200 s |" in page
    assert "| vLLM FP8 | 528 | 0.250 s | 0.050 s |" in page
    assert "| local NF4 | - | not yet measured |" in page and "Load: not yet measured." in page
    assert "The largest setting under 80 GB: 1 x 8 pairs of 4096 tokens a text, 52.0 GB." in page


# ---- the script ----


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["gpu", "--shape", "Qwen/Nothing"], "--shape 'Qwen/Nothing' is not known: choose one of"),
        (["gpu", "--shape", "Qwen/Qwen2.5-32B"], "no GPU here"),
        (["gpu", "--only", "nothing"], "invalid choice: 'nothing'"),
        (["gpu", "--scratch", ""], "--scratch is empty"),
        (["engine", "--batch-sizes", "1,8"], "'1,8' is no whole number; several stand with spaces between"),
        (["engine", "--batch-sizes", "1", "0"], "--batch-sizes 1 0: numbers from 1 to 4096"),
    ],
)
def test_bad_input_is_a_sentence(flags, says, tmp_path):
    env = {"PATH": "/usr/bin:/bin", "CAI_OUTPUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, env=env)
    assert done.returncode == BAD_INPUT and says in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_script_prints_the_table_and_where_it_lies(tmp_path):
    """With nothing to load: what it does is tested above."""
    env = {"PATH": "/usr/bin:/bin", "CAI_OUTPUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, SCRIPT, "gpu", "--only", "vllm"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert "### tiny (random weights) on a CPU" in done.stdout and "benchmark-gpu.json" in done.stdout
    assert json.loads((tmp_path / "logs/benchmark-gpu.json").read_text())["shape"] == "tiny"
