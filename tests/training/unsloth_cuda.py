"""Builds the trainers that Unsloth makes of TRL's on a CUDA machine, and says what they are, as JSON.

To be run as a process of its own: `python tests/training/unsloth_cuda.py OUTPUT`. UNSLOTH_ALLOW_CPU is
Unsloth's switch for its CUDA branches beside a torch that has no CUDA; only the trainers' rewriting, which it
then leaves out, is called here as models/llama.py does.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "scripts"), str(Path(__file__).parents[1])]


def main(output: Path) -> None:
    os.environ |= {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_COMPILE_LOCATION": str(output / "compiled")}
    from cai.models.model import import_unsloth

    import_unsloth()
    import torch
    import transformers.training_args
    from cai.training.losses import LOSSES

    stock = {name: LOSSES[name].classes()[0] for name in ("dpo", "orpo")}
    rewrite()
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    found = {name: look_at(name, stock[name], output) for name in stock}
    print(json.dumps(found | {"pad": mended_pad()}))


def rewrite() -> None:
    """What unsloth.models.rl.PatchFastRL does with a GPU, for our two trainers; below it, in place of TRL's
    kernel, which is Triton's, the one that Unsloth has for a CPU."""
    from unsloth.models import rl
    from unsloth_zoo.cpu.ops import patch_trl_fused_lm_head

    patch_trl_fused_lm_head()

    rl.patch_trl_disable_gradient_checkpointing()
    rl.patch_trl_fused_lm_head_devices()
    rl.patch_trl_fused_lm_head_kernel()
    experimental = rl._import_trl_experimental_trainers()
    rl._patch_trl_rl_trainers("dpo_trainer")
    rl._patch_trl_experimental_trainer("orpo", experimental["orpo"])


def look_at(loss: str, stock: type, output: Path) -> dict:
    """Of a loss's generated trainer: its defaults beside TRL's, and one built by our code for a 4-bit model
    on a GPU."""
    import inspect

    import torch
    from cai.training import trainer
    from cai.training.callbacks import Log
    from cai.training.losses import LOSSES
    from quick import QUICK, TRAIN

    config, base = LOSSES[loss].classes()
    settings = replace(QUICK, loss=loss, learning_rate=5e-6)
    model = on_a_gpu()
    log = Log(settings, output / loss)
    made = trainer.build(model, TRAIN, settings, output / loss, log)
    weights = [p for p in model.model.parameters() if p.requires_grad]
    made.model.train()
    batch = next(iter(made.get_train_dataloader()))
    if log.first is not None:
        log.first.see(batch["completion_mask"])
    with torch.autocast("cpu", torch.bfloat16):  # as accelerate has it on a GPU, by args.bf16
        first = made.compute_loss(made.model, batch)
    first.backward()
    return {
        "names": [base.__name__, config.__name__],
        "trl": defaults(stock),
        "unsloth": defaults(config),
        "stated": sorted(trainer.told(model, settings, len(TRAIN))),
        "source": inspect.getsource(inspect.getmodule(base)),
        "dtypes": sorted({str(w.dtype) for w in weights}),
        "gradients": sum(bool(w.grad is not None and w.grad.abs().sum() > 0) for w in weights),
        "loss": float(first.detach()),
        "logged": {key: values[0] for key, values in made._metrics["train"].items()} if log.first else {},
        "padding_side": model.tokenizer.padding_side,
    }


def on_a_gpu():
    """The sandbox with a new adapter, as models.model.Model would carry it on a GPU: 4-bit by its word."""
    import torch
    from cai.core.files import ROOT
    from cai.models.model import LORA_TARGETS, Model
    from cai.models.registry import REGISTRY
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class OnGpu(Model):
        device = torch.device("cuda")

    path = ROOT / "models/sandbox"
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=list(LORA_TARGETS), task_type="CAUSAL_LM")
    whole = get_peft_model(base, lora)
    whole.is_loaded_in_4bit = True
    return OnGpu(REGISTRY["sandbox"], whole, AutoTokenizer.from_pretrained(path), 4, None)


def mended_pad() -> dict[str, list]:
    """Pad and length of the sandbox's tokenizer: after Unsloth's loader for GPUs, and after ours."""
    from cai.core.files import ROOT
    from cai.models.loader import own_tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from unsloth_zoo.tokenizer_utils import patch_tokenizer

    path = ROOT / "models/sandbox"
    model = AutoModelForCausalLM.from_pretrained(path)
    model, theirs = patch_tokenizer(model, AutoTokenizer.from_pretrained(path))
    before = [theirs.pad_token, len(theirs), model.generation_config.pad_token_id]
    ours = own_tokenizer(path, model)
    return {"theirs": before, "ours": [ours.pad_token, len(ours), model.generation_config.pad_token_id]}


def defaults(config: type) -> dict[str, str]:
    """Of a configuration's fields, as it comes out when nothing is said."""
    made = config(output_dir="unused", use_cpu=True)
    named = {field.name for field in fields(config)}
    return {key: str(value) for key, value in vars(made).items() if key in named}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
