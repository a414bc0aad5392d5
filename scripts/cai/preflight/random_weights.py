"""Random models of a known shape, written as checkpoints in 16 bits or, ready made, in 4.

A benchmark measures a 32B before anything of it is downloaded: the weights are drawn layer by layer, for 4
bits rounded to NF4 on the machine's own device, and written in the format of the real repositories, so that
they load by the very path that those take. Speed and memory depend on the shape alone; the text is noise.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import ROOT

TOKENIZER = ROOT / "models/sandbox"  # its ids are a subset of every shape's vocabulary
SPARE = 64  # rows of the embedding that no token has, as Qwen's: a loader may add a token of its own
QUANTIZATION = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": ["lm_head"],
}

# Bytes a parameter: four bits, an 8-bit scale for every 64, and a 32-bit scale for every 256 of those scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Shape:
    """A Qwen2 architecture: sizes as in its config.json; tied: the output layer is the embedding."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """One layer's linear modules: name -> (outputs, inputs)."""
        kv, h, i = self.hidden // self.heads * self.kv_heads, self.hidden, self.intermediate
        return {
            "self_attn.q_proj": (h, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h),
            "mlp.gate_proj": (i, h),
            "mlp.up_proj": (i, h),
            "mlp.down_proj": (h, i),
        }

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(out * inn for out, inn in self.linears.values())

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        biases = self.hidden + 2 * (self.hidden // self.heads * self.kv_heads)
        norms = 2 * self.hidden
        return (
            self.linear_parameters + self.embedding_parameters + self.layers * (biases + norms) + self.hidden
        )

    @property
    def cache_bytes(self) -> int:
        """Of one token in the key-value cache, in 16 bits."""
        return self.layers * 2 * (self.hidden // self.heads * self.kv_heads) * 2

    def checkpoint_bytes(self, bits: int) -> float:
        """In 4 bits the linear layers are in NF4, embeddings in 16 bits."""
        return self.linear_parameters * (NF4_BYTES if bits == 4 else 2) + self.embedding_parameters * 2

    def step_bytes(self, bits: int) -> float:
        """What passes through memory for each step of a batch: all weights but the embedding, of which a row
        is looked up."""
        return self.linear_parameters * bits / 8 + self.vocabulary * self.hidden * 2

    def config(self, bits: int) -> dict[str, Any]:
        return ({"quantization_config": QUANTIZATION} if bits == 4 else {}) | {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "rms_norm_eps": 1e-6,
            "attention_dropout": 0.0,
            "use_cache": True,
            "dtype": "bfloat16",
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }


SHAPES: dict[str, Shape] = {
    "Qwen/Qwen2.5-72B": Shape(80, 8192, 64, 8, 29568, 152064, False),
    "Qwen/Qwen2.5-32B": Shape(64, 5120, 40, 8, 27648, 152064, False),
    "Qwen/Qwen2.5-14B": Shape(48, 5120, 40, 8, 13824, 152064, False),
    "Qwen/Qwen2.5-7B": Shape(28, 3584, 28, 4, 18944, 152064, False),
    "Qwen/Qwen2.5-3B": Shape(36, 2048, 16, 2, 11008, 151936, True),
    "Qwen/Qwen2.5-1.5B": Shape(28, 1536, 12, 2, 8960, 151936, True),
    "Qwen/Qwen2.5-0.5B": Shape(24, 896, 14, 2, 4864, 151936, True),
    "tiny": Shape(2, 128, 4, 2, 256, 4096, False),  # the 32B's layout at a size that a CPU quantises at once
}


def shape_of(name: str) -> Shape:
    """Raises UserError for a shape that is not known."""
    if name not in SHAPES:
        raise UserError(f"--shape {name!r} is not known: choose one of {', '.join(SHAPES)}")
    return SHAPES[name]


def write_random(
    shape: Shape,
    directory: Path,
    *,
    bits: int = 4,
    device: str,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes a checkpoint of random weights (deviation 0.02, norms 1, biases 0), a file a layer; its bytes.

    Only one layer's 16-bit weights exist at a time. progress: called with (files written, files in all).
    """
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device=device).manual_seed(seed)
    names, total, files = {}, 0, shape.layers + 1
    for number, tensors in enumerate(_parts(shape, bits, device, generator), 1):
        file = f"model-{number:05}-of-{files:05}.safetensors"
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        names |= dict.fromkeys(tensors, file)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
        progress(number, files)
    index = {"metadata": {"total_size": total}, "weight_map": names}
    for name, value in {
        "model.safetensors.index.json": index,
        "config.json": shape.config(bits),
        "generation_config.json": {"eos_token_id": 0, "pad_token_id": 0},
    }.items():
        (directory / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    shutil.copy(TOKENIZER / "tokenizer_config.json", directory)
    tokenizer = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]  # what such a model says is any of its vocabulary
    words |= {f"w{i}": i for i in range(len(words), shape.vocabulary - SPARE)}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return total


def _parts(shape: Shape, bits: int, device: str, generator) -> Iterator[dict[str, Any]]:
    """The tensors of each file: a layer each, then embedding, last norm and output layer."""
    import torch

    def normal(rows: int, columns: int):
        values = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
        return values.normal_(0.0, 0.02, generator=generator)

    def constant(size: int, value: float):
        return torch.full((size,), value, dtype=torch.bfloat16)

    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        norms = ("input_layernorm", "post_attention_layernorm")
        part = {f"{prefix}{name}.weight": constant(shape.hidden, 1.0) for name in norms}
        for name, (rows, columns) in shape.linears.items():
            weight = f"{prefix}{name}.weight"
            drawn = normal(rows, columns)
            part |= _nf4(weight, drawn) if bits == 4 else {weight: drawn}
            if name.endswith(("q_proj", "k_proj", "v_proj")):
                part[f"{prefix}{name}.bias"] = constant(rows, 0.0)
        yield part
    last = {
        "model.embed_tokens.weight": normal(shape.vocabulary, shape.hidden),
        "model.norm.weight": constant(shape.hidden, 1.0),
    }
    if not shape.tied:
        last["lm_head.weight"] = normal(shape.vocabulary, shape.hidden)
    yield last


def _nf4(name: str, weight) -> dict[str, Any]:
    """The tensors that stand for one weight in a 4-bit checkpoint: nibbles, scales, their state."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as import_unsloth does
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    return {name: packed, **{f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}}
