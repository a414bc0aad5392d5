"""Scores: log-probabilities in float32 from hidden states, whatever precision a model's own logits have."""

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from cai.core.errors import UserError
from cai.models import local_engine, scores
from cai.models.engine import logprobs_all, together
from cai.models.local_engine import LocalEngine
from cai.models.model import Model
from cai.models.registry import REGISTRY
from torch.utils._python_dispatch import TorchDispatchMode

PROMPTS = [f"Instruction: What is {'two and ' * k}two?\n\nResponse:" for k in (0, 9, 3, 1)]
TEXTS = [f" It is {'four, or ' * k}four.<|endoftext|>" for k in (5, 0, 2, 7)]
OPTIONS = (" A", " B", ".")
SIZE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
SIZE |= dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=512, pad_token_id=0)


def by_full_logits(model, tokenizer, prompt, text):
    """What a model without batches, slices or an engine says, in float32."""
    head, tail = tokenizer(prompt).input_ids, tokenizer(text).input_ids
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([head + tail])).logits[0].float()
    logp = torch.log_softmax(logits, -1)
    return [float(logp[len(head) - 1 + i, t]) for i, t in enumerate(tail)]


def of_full_logits(model, tokenizer):
    return [by_full_logits(model, tokenizer, p, t) for p, t in zip(PROMPTS, TEXTS, strict=True)]


def scored(model, adapter=None, **more):
    return [list(s.tokens) for s in logprobs_all(LocalEngine(model, **more), PROMPTS, TEXTS, adapter)]


def close(expected, within=1e-5):
    return [pytest.approx(row, abs=within) for row in expected]


def causal(kind, tokenizer, **config):
    """A random model of an architecture, with logits that spread as a trained one's do."""
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**SIZE | {"vocab_size": len(tokenizer) + 9} | config)
    model = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
    model.get_output_embeddings().weight.data.mul_(40)
    return Model(REGISTRY["sandbox"], model, tokenizer, 16, None)


@pytest.fixture
def small_blocks(monkeypatch):
    """So that positions and vocabulary both take several, the last ones not full."""
    monkeypatch.setattr(scores, "POSITIONS", 7)
    monkeypatch.setattr(scores, "IDS", 300)


@pytest.mark.usefixtures("small_blocks")
def test_scores_are_those_of_the_full_logits(base):
    expected = of_full_logits(base.model, base.tokenizer)
    assert scored(base) == close(expected) and scored(base, max_batch=1) == close(expected)
    found = together(LocalEngine(base).choose(p, OPTIONS[: 2 + i % 2]) for i, p in enumerate(PROMPTS))
    for i, (prompt, row) in enumerate(zip(PROMPTS, found, strict=True)):
        own = {o: by_full_logits(base.model, base.tokenizer, prompt, o)[0] for o in OPTIONS[: 2 + i % 2]}
        assert list(row) == list(own) and row == pytest.approx(own, abs=1e-5)


def test_logits_in_bfloat16_blur_no_score(base):
    """As Unsloth's Qwen2 gives them on a GPU."""
    expected = of_full_logits(base.model, base.tokenizer)

    def rounded(module, given, out):
        out.logits = (out.logits + 16).bfloat16()
        return out

    hook = base.model.register_forward_hook(rounded)
    try:
        blurred = of_full_logits(base.model, base.tokenizer)
        found = scored(base)
    finally:
        hook.remove()
    assert found == close(expected)
    assert (
        max(abs(a - b) for x, y in zip(blurred, expected, strict=True) for a, b in zip(x, y, strict=True))
        > 0.01
    )


def test_an_adapter_is_in_the_scores_while_it_is_used(fresh):
    without = of_full_logits(fresh.model, fresh.tokenizer)
    fresh.add_adapter(r=4, alpha=8, seed=0)
    for name, parameter in fresh.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    fresh.for_inference()
    with_it = of_full_logits(fresh.model, fresh.tokenizer)
    assert max(abs(a - b) for a, b in zip(with_it[0], without[0], strict=True)) > 0.1
    assert scored(fresh, "default") == close(with_it) and scored(fresh) == close(without)


def test_weights_in_four_bits_have_an_output_layer_in_more():
    from cai.models.loader import load

    model = load(REGISTRY["sandbox"], 4)
    assert scored(model) == close(of_full_logits(model.model, model.tokenizer), 1e-4)


@pytest.mark.parametrize(
    "kind, config",
    [
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Gemma2", {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Granite", {"logits_scaling": 3.0}),
        ("Phi", {}),  # its output layer has a bias
    ],
)
@pytest.mark.usefixtures("small_blocks")
def test_what_an_architecture_does_to_its_logits_is_done(base, kind, config):
    model = causal(kind, base.tokenizer, **config)
    if (bias := getattr(model.model.get_output_embeddings(), "bias", None)) is not None:
        torch.nn.init.normal_(bias)
    assert scored(model) == close(of_full_logits(model.model, base.tokenizer), 5e-5)


def test_an_architecture_that_does_something_else_is_refused(base):
    model = causal("Qwen2", base.tokenizer)
    model.model.lm_head.register_forward_hook(lambda module, given, out: 0.5 * out)
    with pytest.raises(UserError, match="differ from its own by .* choose another --model"):
        scored(model)


def test_a_quantised_output_layer_is_refused(base):
    model = causal("Qwen2", base.tokenizer)
    model.model.lm_head.weight = torch.nn.Parameter(torch.ones(9, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="a Linear in torch.int8, .* --bits 16"):
        scores.OutputLayer(model.model)


def test_an_adapted_output_layer_is_refused(base):
    """Its plain weights alone would be taken."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(causal("Qwen2", base.tokenizer).model, LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(UserError, match="nor adapted"):
        scores.OutputLayer(model)


class Largest(TorchDispatchMode):
    """The most elements that any tensor had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr():
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_has_every_position_and_every_word(base, monkeypatch):
    monkeypatch.setattr(scores, "POSITIONS", 64)
    model = causal("Qwen2", base.tokenizer, vocab_size=50_000, tie_word_embeddings=True)
    with Largest() as seen:
        logprobs_all(LocalEngine(model), PROMPTS, [" It is so." * 30] * len(PROMPTS))
    assert 64 * scores.IDS <= seen.elements <= 50_000 * SIZE["hidden_size"]


def test_a_batch_of_scores_takes_what_its_layers_need_and_one_block(base, monkeypatch):
    monkeypatch.setattr(scores, "IDS", 500)
    engine = LocalEngine(causal("Qwen2", base.tokenizer), max_batch=64)
    block = scores.OutputLayer(engine._model.model).block_bytes
    words = len(base.tokenizer) + 9
    assert block == 4 * 500 * (3 * scores.POSITIONS + SIZE["hidden_size"])
    row = 100 * 4 * (3 * SIZE["intermediate_size"] + 8 * SIZE["hidden_size"]) + 4 * 100**2 + 4 * words
    monkeypatch.setattr(local_engine, "CPU_BUDGET", block + 10 * row)
    assert engine._rows_that_fit([100] * 30, 0) == 10 == engine._rows_that_fit([100, *[10] * 29], 0)
    assert engine._rows_that_fit([9000], 0) == 1


def test_a_probability_is_at_most_one(base):
    model = causal("Qwen2", base.tokenizer)
    model.model.lm_head.weight.data.mul_(50)
    found = [value for row in scored(model) for value in row]
    assert max(found) <= 0 and all(math.isfinite(value) for value in found)


def test_unsloths_forward_on_a_gpu_gives_its_hidden_states_to_the_hook():
    """Read, not run: its kernels need a GPU. It calls the decoder as a module, so that hooks are called, and
    projects what comes first in its output, which the last norm has been through."""
    source = (Path(find_spec("unsloth").origin).parent / "models/llama.py").read_text()
    backbone = source.split("def _run_backbone(self, **kwargs):")[1].split("\ndef ")[0]
    assert "model = self.model\n" in backbone and "return model(**kwargs)" in backbone
    forward = source.split("def _CausalLM_fast_forward(")[1].split("\ndef ")[0]
    assert "outputs = _run_backbone(" in forward and "hidden_states = outputs[0]" in forward
    assert "logits = self.lm_head(hidden_states[:, -num_logits_to_keep:, :].to(dtype))" in forward
