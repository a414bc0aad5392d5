import dataclasses
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from cai.core.errors import UserError
from cai.core.files import ROOT, sha256_file
from cai.core.ledger import read_ledger
from cai.core.run import Run
from cai.generation import guard
from cai.models import device, loader, model, registry
from cai.models.engine import Sampling, complete_all
from cai.models.local_engine import LocalEngine
from cai.models.session import record_engine

SANDBOX = registry.REGISTRY["sandbox"]
TEST_GPU = device.Gpu("Test GPU", "580.1", 8e9, 8e9, (8, 0))
PROMPT = "Instruction: Who is kind?\nResponse:"


def logits(model, adapter=None):
    ids = model.tokenizer(PROMPT, return_tensors="pt").input_ids
    with model.using(adapter), torch.inference_mode():
        return model.model(input_ids=ids).logits


def shake(model, name, scale):
    """Gives an adapter weights that do something: B is 0 in a new one."""
    torch.manual_seed(1)
    for key, value in model.model.named_parameters():
        if f"lora_B.{name}" in key:
            value.data.normal_(0, scale)


def test_the_registry_names_each_model_once_and_pins_it():
    for name, spec in registry.REGISTRY.items():
        instruct = "Instruct" in name or "Guard" in name
        assert spec.name == name and spec.kind == ("instruct" if instruct else "base")
        if name != "sandbox":
            assert len(spec.revision) == 40 and int(spec.revision, 16) and spec.parameters > 0
    big = registry.REGISTRY["Qwen/Qwen2.5-32B"]
    assert big.source(4)[0].endswith("bnb-4bit") and big.source(16) == (big.repo, big.revision)
    assert 18 < big.download_gb(4) < 21 and 64 < big.download_gb(16) < 67 and big.memory_gb(4) < 24


def test_a_servers_tokenizer_leaves_the_libraries_as_a_later_training_needs_them():
    """In a process of its own: Unsloth comes before transformers, the allocator's setting before both."""
    program = (
        "import os, warnings; warnings.simplefilter('error', UserWarning)\n"
        "from cai.models.loader import load_tokenizer\n"
        "from cai.models.model import import_unsloth\n"
        "from cai.models.registry import REGISTRY\n"
        "load_tokenizer(REGISTRY['sandbox'], 16)\n"
        "import_unsloth()\n"
        f"print(os.environ['{device.ALLOCATOR[0]}'])"
    )
    env = {k: v for k, v in os.environ.items() if k not in device.ALLOCATOR}
    env |= {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert "should be imported before" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert device.EXPANDABLE in done.stdout


def test_names_resolve_to_registry_directory_or_hub_id(tmp_path):
    assert registry.resolve("sandbox") is SANDBOX
    assert registry.resolve("some/model@abc").source(16) == ("some/model", "abc")
    assert (
        registry.resolve("some/model", instruct=True).kind == "instruct"
        and registry.resolve("some/model").kind == "base"
    )
    assert registry.resolve(str(tmp_path)).repo == str(tmp_path)
    for bad in ("nonsense", "../x/y", "a b/c", ""):
        with pytest.raises(UserError, match="Qwen/Qwen2.5-32B"):
            registry.resolve(bad)
    with pytest.raises(UserError, match="void the experiment"):
        registry.resolve("sandbox", instruct=True)


def test_auto_is_the_sandbox_without_a_gpu_and_the_32b_with_one(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "gpus", lambda: ([], "no nvidia-smi on this machine"))
    assert registry.choose("auto") == (SANDBOX, "the default without a CUDA GPU")
    assert (device.hourly_rate(None), guard.guard_spec("auto").name) == (0.0, "sandbox")
    monkeypatch.setattr(device, "gpus", lambda: ([TEST_GPU], ""))
    spec, why = registry.choose("auto")
    assert spec.name == "Qwen/Qwen2.5-32B" and "Test GPU" in why
    assert device.hourly_rate(None) == 1.74 and device.hourly_rate(2.0) == 2.0
    assert "Llama-Guard" in guard.guard_spec("auto").name
    for hidden, name in (("", "cpu"), ("-1", "cpu"), ("-1,0", "cpu"), ("0", "Test GPU"), ("1,0", "Test GPU")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert device.this_device() == name, hidden
        assert (registry.choose("auto")[0] is SANDBOX) == (name == "cpu")


def test_a_gpu_that_torch_cannot_use_is_said_and_not_replaced_by_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "gpus", lambda: ([TEST_GPU], ""))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    def fetch(*args):
        raise UserError("as far as the weights")

    monkeypatch.setattr(loader, "fetch", fetch)
    with pytest.raises(UserError, match=r"lists a GPU \(Test GPU\), but torch .*bash setup_environment.sh"):
        loader.load(SANDBOX)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # as the sentence says: the CPU, on purpose
    with pytest.raises(UserError, match="as far as the weights"):
        loader.load(SANDBOX)


@pytest.mark.parametrize("bits", [5, 0, 32])
def test_bits_that_do_not_exist(bits):
    with pytest.raises(UserError, match="choose 4, 8 or 16"):
        loader.load(SANDBOX, bits)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU loads 8 bits")
def test_eight_bits_without_a_gpu_are_refused_not_swapped():
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        loader.load(SANDBOX, 8)


def test_bits_that_come_up_otherwise_are_refused(monkeypatch):
    monkeypatch.setattr(loader, "_bits_of", lambda model: 16)
    with pytest.raises(UserError, match="came up in 16 bits"):
        loader.load(SANDBOX, 4)


def test_four_bits_are_nf4_and_near_the_weights(base):
    four = loader.load(SANDBOX, 4)
    layers = [x for x in four.model.modules() if type(x).__name__ == "Linear4bit"]
    assert four.bits == 4 and layers and layers[0].weight.quant_state.quant_type == "nf4"
    difference = (logits(four) - logits(base)).abs().mean()
    assert 0 < difference < 2


def test_a_directory_without_safetensors_is_refused(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models/sandbox" / name, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickled weights are not loaded"):
        loader.load(registry.resolve(str(tmp_path)))


def test_a_missing_sandbox_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "ROOT", tmp_path)
    with pytest.raises(UserError, match="make_sandbox.py"):
        loader.load(SANDBOX)


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_the_hub_is_a_sentence(monkeypatch, tmp_path, offline):
    """Once told to stay offline, once with an endpoint where nothing listens."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(loader, "check_disk", lambda spec, bits: None)
    with pytest.raises(UserError, match="cannot be reached"):
        loader.fetch(dataclasses.replace(registry.REGISTRY["Qwen/Qwen2.5-0.5B"], name="x"), 16)


def test_too_small_a_disk_or_gpu_is_found_before_the_download(monkeypatch):
    big = registry.REGISTRY["Qwen/Qwen2.5-32B"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100e9, 90e9, 10e9))
    with pytest.raises(UserError, match=r"needs 21 GB .* 10 GB are free: set HF_HOME"):
        loader.check_disk(big, 4)
    with pytest.raises(UserError, match=r"use --bits 8"):
        loader.check_gpu_memory(big, 16, int(60e9))
    with pytest.raises(UserError, match=r"choose a smaller --model"):
        loader.check_gpu_memory(big, 4, int(16e9))
    loader.check_gpu_memory(big, 4, int(79e9))


def test_adapters_are_saved_hashed_loaded_and_swapped(fresh, tmp_path, base):
    fresh.add_adapter(r=4, alpha=8, seed=0)
    assert torch.equal(logits(fresh, "default"), logits(fresh, None))  # a new adapter changes nothing
    shake(fresh, "default", 0.05)
    first = logits(fresh, "default")
    digest = fresh.save_adapter(tmp_path / "one")
    shake(fresh, "default", 0.2)
    fresh.save_adapter(tmp_path / "two")
    config = json.loads((tmp_path / "one/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/sandbox"  # not a path of this machine
    assert not list(tmp_path.glob("**/*.bin")) and not list(tmp_path.glob("*.part"))

    other = loader.load(SANDBOX)
    other.load_adapter(tmp_path / "one", "stage1")
    other.load_adapter(tmp_path / "two", "stage2")
    assert other.adapters["stage1"] == digest != other.adapters["stage2"]
    assert torch.allclose(logits(other, "stage1"), first, atol=1e-5)
    assert not torch.allclose(logits(other, "stage2"), first, atol=1e-2)
    assert torch.allclose(logits(other, None), logits(base), atol=1e-5)
    engine = LocalEngine(other)

    def write(adapter):
        return [c.text for c in complete_all(engine, [PROMPT] * 12, Sampling(1.0, 20), range(12), adapter)]

    texts = [write(adapter) for adapter in (None, "stage2", "stage1", None, "stage1")]
    assert texts[0] == texts[3] and texts[2] == texts[4]
    assert texts[0] != texts[1] != texts[2]
    with pytest.raises(UserError, match="stage1, stage2"):
        complete_all(engine, [PROMPT], Sampling(), [1], "stage3")
    with pytest.raises(UserError, match="loaded already"):
        other.load_adapter(tmp_path / "one", "stage1")


def test_an_adapter_of_another_base_or_a_changed_file_is_refused(fresh, tmp_path):
    fresh.add_adapter(r=4, alpha=8, seed=0)
    fresh.save_adapter(tmp_path / "a")
    with pytest.raises(UserError, match=r"belongs to sandbox"):
        model.check_adapter(tmp_path / "a", registry.REGISTRY["Qwen/Qwen2.5-0.5B"])
    with pytest.raises(UserError, match=r"belongs to sandbox \(revision"):
        model.check_adapter(tmp_path / "a", SANDBOX, ("models/sandbox", "another revision"))
    with open(tmp_path / "a/adapter_model.safetensors", "ab") as f:
        f.write(b"x")
    with pytest.raises(UserError, match="its hash differs"):
        loader.load(SANDBOX).load_adapter(tmp_path / "a", "a")
    with pytest.raises(UserError, match="base.json is missing"):
        model.check_adapter(tmp_path, SANDBOX)
    for text in (b"null", b"{", b"\xff"):
        (tmp_path / "a/base.json").write_bytes(text)
        with pytest.raises(UserError, match="base.json is damaged"):
            model.check_adapter(tmp_path / "a", SANDBOX)


READY, FULL = "unsloth/Qwen2.5-32B-bnb-4bit", "Qwen/Qwen2.5-32B"


@pytest.mark.parametrize(
    ("trained", "used", "outcome"),
    [
        ((READY, "a"), (READY, "a"), "silent"),
        ((FULL, "a"), (FULL, "a"), "silent"),
        ((READY, "a"), (READY, "b"), "refused"),  # the 4-bit weights of another commit
        ((FULL, "a"), (FULL, "b"), "refused"),
        ((READY, None), (READY, "b"), "refused"),
        ((READY, "a"), (FULL, "b"), "named"),
        ((FULL, "a"), (READY, "b"), "named"),
        (("/moved/here", "a"), (FULL, "a"), "silent"),  # a directory's revision is the hash of its weights
        (("somebody/else", "a"), (READY, "b"), "refused"),
        ((READY, "a"), None, "silent"),  # before the weights are loaded
    ],
)
def test_an_adapters_base_is_compared_with_the_weights_that_are_loaded(
    tmp_path, capsys, trained, used, outcome
):
    spec = registry.REGISTRY["Qwen/Qwen2.5-32B"]
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    fact = {"model": spec.name, "repo": trained[0], "revision": trained[1], "bits": 4}
    fact["sha256"] = sha256_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "base.json").write_text(json.dumps(fact))
    if outcome == "refused":
        with pytest.raises(UserError, match="give the model it was trained on"):
            model.check_adapter(tmp_path, spec, used)
        return
    assert model.check_adapter(tmp_path, spec, used) == fact
    said = capsys.readouterr().err
    assert (READY in said and FULL in said) if outcome == "named" else said == ""


def test_an_adapter_records_the_repository_that_was_really_loaded(fresh, tmp_path):
    fresh.spec = dataclasses.replace(SANDBOX, repo_4bit="some/ready-4bit")
    fresh.add_adapter(r=4, alpha=8, seed=0)
    for bits, repo in ((16, "models/sandbox"), (4, "some/ready-4bit")):
        fresh.bits = bits
        fresh.save_adapter(tmp_path / repo)
        fact = json.loads((tmp_path / repo / "base.json").read_text())
        assert (fact["repo"], fact["revision"]) == (repo, fresh.revision)


def test_merging_goes_into_16_bit_weights(fresh, tmp_path):
    fresh.add_adapter(r=4, alpha=8, seed=0)
    shake(fresh, "default", 0.1)
    expected, plain = logits(fresh, "default"), logits(fresh, None)
    fresh.save_merged(tmp_path / "whole")
    merged = loader.load(registry.resolve(str(tmp_path / "whole")))
    assert not merged.adapters and merged.bits == 16
    assert (logits(merged) - expected).abs().mean() < 0.1 * (plain - expected).abs().mean()
    merged.bits = 4
    with pytest.raises(UserError, match="loaded in 4 bits"):
        merged.save_merged(tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()


def test_a_sandbox_is_measured_into_the_logs_of_cai_output(monkeypatch, tmp_path, capsys):
    import make_sandbox
    from cai.sandbox import measure

    class Measurement:
        transcripts = []

        def __init__(self, *args, **more):
            pass

        def run(self):
            return {}

    monkeypatch.setattr(make_sandbox, "load", lambda spec: None)
    monkeypatch.setattr(measure, "Measurement", Measurement)
    monkeypatch.setattr(make_sandbox, "engine_of", lambda _: SimpleNamespace(revision="of these weights"))
    for name, made in {"table": [], "details": "", "render": ""}.items():
        monkeypatch.setattr(measure, name, lambda *args, made=made: made)
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("sys.argv", ["make_sandbox.py", "--evaluate", "--split", "tune"])
    make_sandbox.main()
    written = tmp_path / "elsewhere/logs/sandbox-tune.json"
    assert json.loads(written.read_text())["weights"] == "of these weights"
    assert str(written) in capsys.readouterr().out


def test_the_saved_tokenizer_renders_the_training_format(fresh, tmp_path):
    from cai.prompts.training_format import training_prompt
    from transformers import AutoTokenizer

    fresh.add_adapter(r=4, alpha=8, seed=0)
    fresh.save_adapter(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    ask = [{"role": "user", "content": "Who is kind?"}]
    assert tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True) == training_prompt(
        "Who is kind?"
    )


def test_unsloth_is_imported_in_one_place_only():
    importers = {
        p.name
        for p in (ROOT / "scripts").rglob("*.py")
        if "import unsloth" in p.read_text() or "from unsloth" in p.read_text()
    }
    assert importers == {"model.py"}


def test_no_code_from_a_hub_and_no_pickles():
    for path in (ROOT / "scripts").rglob("*.py"):
        text = path.read_text()
        assert "trust_remote_code=True" not in text and "torch.load(" not in text, path
    assert not any("bin" in p or p == "*" or p.endswith(".py") for p in loader.SAFE_FILES)


# ---- the hash of an adapter ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with an adapter that does something."""
    own = loader.load(SANDBOX)
    own.add_adapter(r=4, alpha=8, seed=0)
    shake(own, "default", 0.05)
    own.save_adapter(tmp_path_factory.mktemp("saved") / "a")
    return next(tmp_path_factory.getbasetemp().glob("saved*")) / "a"


def changed(file, **facts):
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("adapter_config.json", {"lora_alpha": 320}),
        ("adapter_config.json", {"r": 8}),
        ("adapter_config.json", {"target_modules": ["q_proj"]}),
        ("adapter_config.json", {"use_rslora": True}),
        ("tokenizer_config.json", {"eos_token": "x"}),
        ("tokenizer.json", {"model": {}}),
        ("chat_template.jinja", None),
        ("special_tokens_map.json", None),  # a file that was not there
    ],
)
def test_an_adapter_of_another_file_is_another_adapter(saved, tmp_path, name, facts):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    if facts is None:
        (tmp_path / name).write_text("other")
    else:
        changed(tmp_path / name, **facts)
    assert model.adapter_hash(tmp_path)["sha256"] != model.adapter_hash(saved)["sha256"]
    with pytest.raises(UserError, match=f"{name} is not the file that was saved"):
        model.check_adapter(tmp_path, SANDBOX)
    with pytest.raises(UserError, match=f"{name} is not the file that was saved"):
        loader.load(SANDBOX).load_adapter(tmp_path, "a")


def test_where_and_by_which_version_an_adapter_was_written_makes_no_other(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    config = json.loads((saved / "adapter_config.json").read_text())
    changed(
        tmp_path / "adapter_config.json",
        base_model_name_or_path="/elsewhere/models/sandbox",
        peft_version="9",
        target_modules=config["target_modules"][::-1],  # a set's order, another in each process
    )
    changed(tmp_path / "tokenizer_config.json", is_local=False)
    (tmp_path / "README.md").write_text("mine")
    assert model.check_adapter(tmp_path, SANDBOX) == model.check_adapter(saved, SANDBOX)


def test_a_lost_file_of_an_adapter_is_named(saved, tmp_path):
    for name in ("adapter_config.json", "tokenizer.json", "chat_template.jinja"):
        shutil.copytree(saved, tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(UserError, match=f"{name}"):
            model.check_adapter(tmp_path / name, SANDBOX)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", "{", "[" * 100_000]
    + [json.dumps({"r": 4, "lora_alpha": 8} | bad) for bad in (
        {"r": "4"}, {"r": 0}, {"r": True}, {"lora_alpha": None}, {"lora_alpha": float("nan")},
        {"peft_type": "IA3"}, {"peft_type": []},
    )],
)  # fmt: skip
def test_a_damaged_configuration_is_a_sentence_also_of_an_adapter_without_its_hash(saved, tmp_path, text):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    fact = json.loads((tmp_path / "base.json").read_text())
    del fact["files"]
    fact["sha256"] = sha256_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "base.json").write_text(json.dumps(fact))
    assert model.check_adapter(tmp_path, SANDBOX)["sha256"] == fact["sha256"]  # as older ones are known
    (tmp_path / "adapter_config.json").write_text(text)
    for ask in (model.lora_of, lambda path: model.check_adapter(path, SANDBOX)):
        with pytest.raises(UserError, match="adapter_config.json is no configuration of a LoRA adapter"):
            ask(tmp_path)


def test_a_base_json_of_other_types_is_damaged(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    fact = json.loads((saved / "base.json").read_text())
    for key, bad in (
        ("sha256", 3),
        ("files", []),
        ("repo", []),
        ("revision", {}),
        ("bits", "4"),
        ("model", 1),
    ):
        (tmp_path / "base.json").write_text(json.dumps(fact | {key: bad}))
        with pytest.raises(UserError, match="base.json is damaged"):
            model.check_adapter(tmp_path, SANDBOX)


def test_saving_an_adapter_clears_nothing_beside_it_away(fresh, tmp_path):
    (tmp_path / "a.part").mkdir()
    (tmp_path / "a.part/mine").write_text("x")
    fresh.add_adapter(r=4, alpha=8, seed=0)
    fresh.save_adapter(tmp_path / "a")
    assert (tmp_path / "a.part/mine").exists() and not (tmp_path / "a/.part").exists()


def test_what_wrote_the_texts_stays_in_run_json_whatever_trains_or_measures_later(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))

    def engine(name, bits, caveat):
        about = {
            "bits": bits,
            "device": f"of {name}",
            "precision": f"{name}'s",
            "caveat": caveat,
            "chat": None,
        }
        return SimpleNamespace(spec=SANDBOX, name=name, **about)

    def made_by(run):
        return [run.manifest[key] for key in ("engine", "bits", "device", "precision", "caveat")]

    wrote, trains = engine("vllm", 8, "texts may differ"), engine("local", 4, None)
    with Run.open("mvp", {}) as run:
        record_engine(run, engine("server", 16, None))  # a start that wrote nothing
        record_engine(run, wrote)
        (run.data / "records.jsonl").touch()
        record_engine(run, trains)
        with run.step("training"):
            pass
        assert made_by(run) == ["vllm", 8, "of vllm", "vllm's", "texts may differ"]
    with Run.reopen("mvp") as run:
        record_engine(run, trains)
        with run.step("evaluation: answers"):
            pass
        assert made_by(run) == ["vllm", 8, "of vllm", "vllm's", "texts may differ"]
    rows = [(r["engine"], r["bits"], r["device"]) for r in read_ledger()]
    assert rows == [("local", 4, "of local")] * 2
