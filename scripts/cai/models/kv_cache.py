"""A key-value cache that grows in steps. transformers' own copies all keys and values at every token.

On two CPU cores that copy is a third of a batch's time. On a GPU Unsloth keeps a cache of its own, and would
keep it until the next forward pass.
"""

from __future__ import annotations

from transformers.cache_utils import Cache, DynamicLayer

# Where Unsloth's attention layers have it on a GPU (its LlamaAttention_fast_forward drops these).
UNSLOTHS = (
    "paged_attention_K",
    "paged_attention_V",
    "paged_attention",
    "temp_QA",
    "temp_KV",
    "RH_Q",
    "attention",
)
STEP = 128  # tokens of room that are added at once


class RoomyLayer(DynamicLayer):
    """A DynamicLayer whose keys and values, [rows, heads, length, head size], are views of larger buffers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._room = None

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._room is None or end > self._room[0].shape[-2]:
            old = (self.keys, self.values)
            new = (key_states, value_states)
            self._room = tuple(_longer(x, y, end + STEP) for x, y in zip(new, old, strict=True))
        for buffer, states in zip(self._room, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._room)
        return self.keys, self.values


def _longer(states, old, length: int):
    rows, heads, _, size = states.shape
    buffer = states.new_empty(rows, heads, length, size)
    if old.numel():
        buffer[:, :, : old.shape[-2]] = old
    return buffer


def drop_caches(model) -> None:
    """Unsloth's, of the batch before: for the 32B up to a third of an A100's memory, without which the next
    batch's rows, and a training's, would be reckoned."""
    for module in model.modules():
        if "paged_attention" in vars(module):
            for name in UNSLOTHS:
                vars(module).pop(name, None)


def roomy() -> Cache:
    return Cache(layer_class_to_replicate=RoomyLayer)
