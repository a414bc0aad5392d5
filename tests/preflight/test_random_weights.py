"""Shapes and random checkpoints."""

import json

import pytest
from cai.core.errors import UserError
from cai.models import device
from cai.preflight import measurements, random_weights
from cai.preflight.random_weights import SHAPES


@pytest.mark.parametrize("name", ["tiny", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-32B"])
def test_a_shapes_parameters_are_those_of_the_architecture(name, base):  # base: unsloth is imported first
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = {k: v for k, v in SHAPES[name].config(16).items()}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**config))
    assert sum(p.numel() for p in model.parameters()) == SHAPES[name].parameters


def test_the_32bs_checkpoint_is_about_19_gb():
    assert SHAPES["Qwen/Qwen2.5-32B"].checkpoint_bytes(4) / 1e9 == pytest.approx(19.2, abs=0.2)
    assert SHAPES["Qwen/Qwen2.5-32B"].checkpoint_bytes(16) / 1e9 == pytest.approx(65.5, abs=0.1)


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_checkpoint_holds_every_weight_in_nf4_and_is_as_large_as_computed(tmp_path, tied):
    import bitsandbytes.functional as bnb
    import torch
    from safetensors import safe_open

    shape = random_weights.Shape(2, 128, 4, 2, 256, 4096, tied)
    seen = []
    size = random_weights.write_random(shape, tmp_path, device="cpu", progress=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert size == pytest.approx(shape.checkpoint_bytes(4), rel=0.02)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert ("lm_head.weight" in index["weight_map"]) != tied
    name = "model.layers.1.mlp.down_proj.weight"
    with safe_open(tmp_path / index["weight_map"][name], "pt") as f:
        state = {k.removeprefix(f"{name}."): f.get_tensor(k) for k in f.keys() if k.startswith(f"{name}.")}
        whole = bnb.dequantize_4bit(f.get_tensor(name), bnb.QuantState.from_dict(state, torch.device("cpu")))
    assert tuple(whole.shape) == shape.linears["mlp.down_proj"]
    assert float(whole.float().std()) == pytest.approx(0.02, rel=0.05)


def test_the_same_seed_makes_the_same_checkpoint(tmp_path):
    hashes = []
    for directory, seed in (("a", 0), ("b", 0), ("c", 1)):
        random_weights.write_random(SHAPES["tiny"], tmp_path / directory, device="cpu", seed=seed)
        hashes.append((tmp_path / directory / "model-00001-of-00003.safetensors").read_bytes())
    assert hashes[0] == hashes[1] != hashes[2]


def test_too_little_disk_for_the_random_checkpoint_is_said_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "disk_free", lambda path: 1e6)
    place = ("tiny", 4, tmp_path / "scratch", 0, print)
    with pytest.raises(UserError, match="--scratch"), measurements.random_checkpoint(*place):
        pytest.fail("it was written")
    assert not (tmp_path / "scratch").exists()


def test_16_bits_are_written_plainly_and_what_such_a_model_says_can_be_read(tmp_path):
    """A server reads words off the whole vocabulary, of which the sandbox has names for the first part."""
    from safetensors import safe_open
    from transformers import AutoTokenizer

    shape = SHAPES["tiny"]
    size = random_weights.write_random(shape, tmp_path, bits=16, device="cpu")
    assert size == pytest.approx(shape.checkpoint_bytes(16), rel=0.02)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    with safe_open(tmp_path / "model-00001-of-00003.safetensors", "pt") as f:
        assert f.get_tensor("model.layers.0.mlp.up_proj.weight").shape == shape.linears["mlp.up_proj"]
    named = AutoTokenizer.from_pretrained(tmp_path)
    assert len(named) == shape.vocabulary - random_weights.SPARE
    assert named.decode([shape.vocabulary - random_weights.SPARE - 1]).startswith("w")
    sandbox = AutoTokenizer.from_pretrained(random_weights.TOKENIZER)
    text = "Which metals are heavier than w2000?"
    assert named(text)["input_ids"] == sandbox(text)["input_ids"]
