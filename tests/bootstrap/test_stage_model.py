"""The model of a plan's stages where a server generates: it and the training have the GPU in turns."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from cai.bootstrap import stage_model
from cai.bootstrap.stage_model import SharedModel
from cai.core.errors import UserError
from cai.core.run import Run, read_manifest
from cai.models.engines import EngineChoice
from cai.models.registry import REGISTRY
from fakes import FakeEngine

SANDBOX = REGISTRY["sandbox"]
HASHES = ("a" * 64, "b" * 64)


class Server(FakeEngine):
    name, bits, precision = "vllm", 8, "FP8 weights, bfloat16"

    def __init__(self, spec, told):
        super().__init__(lambda prompt: "x", spec=spec)
        self.told = told

    async def choose(self, prompt, options, adapter=None):
        self.told.append("start")
        return dict.fromkeys(options, -1.0)

    def load_adapter(self, path, name):
        self.told.append(name)
        self.adapters[name] = path.name

    def release(self):
        self.told.append("release")


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    told = []

    def load(spec, bits):
        told.append(f"load {bits}")
        return SimpleNamespace(spec=spec, bits=bits, revision="r", adapters={})

    monkeypatch.setattr(stage_model, "server_engine", lambda spec, choice, log: Server(spec, told))
    monkeypatch.setattr(stage_model, "load", load)
    monkeypatch.setattr(stage_model, "engine_of", lambda model: FakeEngine())
    with Run.open("plan", {}) as plan:
        yield SharedModel(SANDBOX, plan, EngineChoice("vllm", 8, "asked")), plan, told


def test_server_and_training_take_turns(shared, tmp_path):
    model, run, told = shared
    names = model.carrying(4, {HASHES[0]: tmp_path / HASHES[0]}, run)
    assert names == {HASHES[0]: f"stage-{HASHES[0][:12]}"} and model.model is None
    assert told == ["start", names[HASHES[0]]]
    assert (run.manifest["engine"], run.manifest["bits"]) == ("vllm", 8)
    model.carrying(4, {HASHES[0]: tmp_path / HASHES[0]}, run)
    assert len(told) == 2  # it runs, and has the adapter
    told.clear()
    assert model.bare(4, run).bits == 4 and told == ["release", "load 4"]
    assert (run.manifest["engine"], run.manifest["bits"]) == ("fake", 16)  # who did the steps from now on
    told.clear()
    names = model.carrying(4, dict(zip(HASHES, map(tmp_path.joinpath, HASHES), strict=True)), run)
    assert model.model is None and told == ["start", *names.values()]
    assert read_manifest("plan")["revision_in_8_bits"] == read_manifest("plan")["revision_in_4_bits"] == "r"


def test_a_stages_engine_has_its_own_entry_and_the_plans_server(shared):
    model, run, _ = shared
    model.carrying(4, {}, run)
    own = model.engine(replace(SANDBOX, shots=2))
    assert own.spec.shots == 2 and model.server.spec.shots == SANDBOX.shots
    assert own.usage is model.server.usage and own.adapters is model.server.adapters


def test_another_adapter_than_the_recorded_one_is_refused(shared, tmp_path):
    model, run, _ = shared
    with pytest.raises(UserError, match="is not the adapter aaaaaaaaaaaa"):
        model.carrying(4, {HASHES[0]: tmp_path / HASHES[1]}, run)
