"""What we rely on in the trainers that Unsloth makes of TRL's where there is a GPU, seen without one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cai.training.losses import LOSSES

pytestmark = pytest.mark.slow

# Stated beside `trainer.stated`, by `trainer.build`: how a run is logged and read, not what is trained.
BESIDE = {"logging_steps", "logging_nan_inf_filter", "dataset_num_proc"}
# Unsloth's own defaults that are left to it, each with the value that was looked at.
LEFT = {
    "per_device_eval_batch_size": "4",  # nothing is evaluated by TRL
    "eval_accumulation_steps": "2",
    "vllm_sampling_params": "None",  # of trainers that generate
    "unsloth_num_chunks": "-1",
    "unsloth_logit_chunk_multiplier": "None",
    "max_seq_length": "None",  # max_length is stated
    "context_parallel_size": "1",  # one GPU
    "context_parallel_backend": "ulysses",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    output = tmp_path_factory.mktemp("unsloth")
    script = Path(__file__).with_name("unsloth_cuda.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(output)],
        env=environment, cwd=output, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_every_default_that_unsloth_changes_is_stated_or_was_looked_at(found, loss):
    of = found[loss]
    changed = {key: value for key, value in of["unsloth"].items() if of["trl"].get(key) != value}
    assert changed["weight_decay"] == "0.001" and changed["seed"] == "3407"  # it is Unsloth's configuration
    unstated = {k: v for k, v in changed.items() if k not in {*of["stated"], *BESIDE}}
    assert unstated.items() <= LEFT.items()


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_our_code_builds_the_generated_trainer_and_it_trains_float32_weights(found, loss):
    """With what a GPU is told; `build` has checked that the trainer took it."""
    of = found[loss]
    assert of["names"][0].startswith("Unsloth") and "bf16" in of["stated"]
    assert of["dtypes"] == ["torch.float32"] and of["padding_side"] == "left"
    assert of["gradients"] == 4 * 7  # B of every linear layer; A has none while B is 0


def test_dpo_starts_at_ln_2_through_the_generated_trainer(found):
    """In bfloat16, policy and reference through the same kernels: no rounding is left."""
    assert found["dpo"]["loss"] == pytest.approx(0.693147, abs=1e-6)
    logged = found["dpo"]["logged"]
    assert [logged[f"rewards/{k}"] for k in ("chosen", "rejected", "margins")] == [0, 0, 0]


def test_the_generated_source_is_what_we_rely_on(found):
    dpo, orpo = (re.sub(r"\s+", " ", found[loss]["source"]) for loss in ("dpo", "orpo"))
    # TRL's cast of a 4-bit model's adapter to bfloat16 is out, its copy of the adapter as reference is in.
    assert "if _is_quantized_model:" not in dpo and "param.data = param.data.to(torch.bfloat16)" in dpo
    assert 'model.add_adapter("ref", default_config)' in dpo
    assert 'adapter_name="ref" if "ref" in ref_model_unwrapped.peft_config else None' in dpo
    # Logits never exist whole: TRL's fused head for policy and reference, Unsloth's for ORPO.
    assert dpo.count("fused_lm_head=True") >= 2 and "logits = model(" not in dpo
    assert LOSSES["dpo"].fused_head and "_unsloth_pref_chunked_forward( self, model," in orpo
    # ORPO divides log-probabilities by length, DPO sums them.
    assert "per_token_logps.sum(dim=1)" in dpo and "average_log_prob=True" in orpo
    for source in (dpo, orpo):
        assert "_gc_kwargs['use_reentrant'] = True" in source
        assert "args.max_length = _unsloth_model_msl" in source
        assert "model.for_inference()" in source  # so the callback sets it to training
        assert "from unsloth_zoo.dataset_num_proc import get_dataset_num_proc" in source


def test_the_pad_token_stays_the_checkpoints(found):
    pad, length, padded_with = found["pad"]["theirs"]
    assert pad not in (None, "<|endoftext|>") and padded_with == length - 1  # so there is something to undo
    assert found["pad"]["ours"] == ["<|endoftext|>", length - 1, 0]
