"""The engine in this process: a scheduler that fills batches from what waits, and what a batch does.

A row's text depends on its prompt, the sampling and its seed, not on the rows beside it: its noise comes from
its own generator (the Gumbel-max trick: the argmax of logits/T plus Gumbel noise is a sample of
softmax(logits/T)). What is left is the rounding of batched matrix products: in float32 about 1e-5 in a logit,
so that about one token in 10^5 could flip; in bfloat16 about 1e-2, so that long texts may part ways between
two batch sizes on a GPU.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.ledger import STEP, Usage
from cai.models.chat import chat_template
from cai.models.completion import completion_of, end_tokens
from cai.models.engine import Completion, Sampling, Score, check_scored, must_fit, single_tokens
from cai.models.model import Model
from cai.models.scores import OutputLayer, hidden_states

CPU_BUDGET = 4e9  # bytes that one batch may take on a CPU
# Examples in flight for each row of a batch: with fewer, batches mix lengths (specs/LOG.md has the figures).
IN_FLIGHT = 8
SETTLED = 4  # rounds of the event loop in which nobody asks anything, before a batch is taken
PATIENCE = 32  # batches that a request lets pass, before it is in the next one whatever else waits


@dataclass(eq=False)
class Request:
    """ids: the tokens of prompt and, for a score, continuation. about: what the batch needs beside them.
    came: how many batches there had been."""

    ids: list[int]
    about: Any
    future: asyncio.Future
    step: str
    came: int

    def settle(self, result: Any = None, error: Exception | None = None) -> None:
        """Its caller may be gone: Ctrl-C cancels while a batch is at work."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class LocalEngine:
    """See models.engine.Engine. max_batch: rows at once (default: the model's, as far as memory allows)."""

    def __init__(self, model: Model, *, max_batch: int | None = None):
        import torch
        from transformers import GenerationConfig

        self._torch, self._model = torch, model
        self.max_batch = max_batch or model.spec.max_batch
        self.usage: dict[str, Usage] = {}
        self.chat = chat_template(model.spec, model.tokenizer)
        config = model.model.generation_config
        self._ends = end_tokens(model.tokenizer, _as_list(config.eos_token_id))
        # A checkpoint's own sampling defaults (top-k, repetition penalty, ...) must not slip into ours.
        model.model.generation_config = GenerationConfig(
            eos_token_id=self._ends, pad_token_id=model.tokenizer.pad_token_id
        )
        self._criteria: dict[tuple[str, ...], Any] = {}
        self._waiting: dict[Hashable, list[Request]] = {}
        self._asked = self._batches = 0
        self._scores_checked = False
        self._last: dict[Hashable, int] = {}  # when a group's latest request came
        self._server: asyncio.Task | None = None

    # ---- the contract ----

    name, caveat = "local", None
    spec = property(lambda self: self._model.spec)
    revision = property(lambda self: self._model.revision)
    bits = property(lambda self: self._model.bits)
    precision = property(lambda self: self._model.precision)
    device = property(lambda self: self._model.device_name)
    adapters = property(lambda self: self._model.adapters)
    capacity = property(lambda self: IN_FLIGHT * self.max_batch)
    end_of_text = property(lambda self: self._model.tokenizer.eos_token)

    def load_adapter(self, path: Path, name: str) -> None:
        self._model.load_adapter(path, name)

    def release(self) -> None:
        """A training trains the very weights that it holds."""

    async def complete(
        self, prompt: str, sampling: Sampling, seed: int, adapter: str | None = None
    ) -> Completion:
        ids = self._encode(prompt)
        if len(ids) > self.spec.max_seq_length - sampling.max_tokens:
            return Completion("", 0, len(ids), "too_long")
        return await self._ask((self._generate, adapter, sampling), ids, seed)

    async def choose(
        self, prompt: str, options: Sequence[str], adapter: str | None = None
    ) -> dict[str, float]:
        wanted = single_tokens(options, [self._encode(option) for option in options])
        ids = self._encode(prompt)
        must_fit(self.spec, len(ids) + 1)
        found = await self._ask((self._next_token, adapter), ids, wanted)
        return dict(zip(options, found, strict=True))

    async def logprobs(self, prompt: str, continuation: str, adapter: str | None = None) -> Score:
        head, tail = self._encode(prompt), self._encode(continuation)
        check_scored(self.spec, head, tail, continuation)
        return await self._ask((self._score, adapter), head + tail, len(tail))

    def _encode(self, text: str) -> list[int]:
        return self._model.tokenizer(text, add_special_tokens=False)["input_ids"]

    # ---- the scheduler ----

    async def _ask(self, key: tuple, ids: list[int], about: Any) -> Any:
        request = Request(ids, about, asyncio.get_running_loop().create_future(), STEP.get(), self._batches)
        self._waiting.setdefault(key, []).append(request)
        self._asked += 1
        self._last[key] = self._asked
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        return await request.future

    async def _serve(self) -> None:
        """Batch after batch, as long as something waits. Before each everybody gets as far as they can."""
        while True:
            seen, quiet = self._asked, 0
            while quiet < SETTLED:
                await asyncio.sleep(0)
                seen, quiet = self._asked, quiet + 1 if seen == self._asked else 0
            self._waiting = {
                key: left
                for key, group in self._waiting.items()
                if (left := [r for r in group if not r.future.done()])
            }
            if not self._waiting:
                return
            self._one_batch(self._next_group())

    def _next_group(self) -> tuple:
        """Of the groups that fill a batch the one that was asked for last: then examples are finished before
        new ones are begun, and a kill costs little. If none does, the largest. But nothing waits for ever."""
        came = {key: min(r.came for r in group) for key, group in self._waiting.items()}
        oldest = min(came, key=came.__getitem__)
        if self._is_overdue(came[oldest]):
            return oldest
        full = [key for key, group in self._waiting.items() if len(group) >= self.max_batch]
        if full:
            return max(full, key=self._last.__getitem__)
        return max(self._waiting, key=lambda key: len(self._waiting[key]))

    def _is_overdue(self, came: int) -> bool:
        return self._batches - came > PATIENCE

    def _one_batch(self, key: tuple) -> None:
        """The group's overdue requests and its shortest, as many as the memory takes."""
        work, adapter, *sampling = key
        group = sorted(self._waiting.pop(key), key=lambda r: (not self._is_overdue(r.came), len(r.ids)))
        self._batches += 1
        new_tokens = sampling[0].max_tokens if sampling else 0
        batch, start = group, time.perf_counter()
        try:
            batch = group[: self._rows_that_fit([len(r.ids) for r in group], new_tokens)]
            self._model.for_inference()
            with self._model.using(adapter), self._torch.inference_mode():
                results = work(batch, *sampling)
        except self._torch.cuda.OutOfMemoryError:
            self._waiting[key] = group
            self._smaller_batches(batch, new_tokens)
            return
        except Exception as error:
            for request in batch:
                request.settle(error=error)
            self._waiting[key] = group[len(batch) :]
            return
        self._waiting[key] = group[len(batch) :]
        seconds = (time.perf_counter() - start) / len(batch)
        for request, result in zip(batch, results, strict=True):
            used = self.usage.setdefault(request.step, Usage())
            used.seconds += seconds
            used.prompt_tokens += len(request.ids)
            used.completion_tokens += result.tokens if isinstance(result, Completion) else 0
            request.settle(result)

    def _smaller_batches(self, batch: list[Request], new_tokens: int) -> None:
        from cai.models.kv_cache import drop_caches

        drop_caches(self._model.model)
        self._torch.cuda.empty_cache()
        if len(batch) == 1:
            error = UserError(
                f"the GPU has no memory left for one row of {len(batch[0].ids)} + {new_tokens} tokens: "
                "load the model with fewer --bits, or stop what else runs on this GPU (nvidia-smi)"
            )
            batch[0].settle(error=error)
        self.max_batch = max(1, len(batch) // 2)

    def _rows_that_fit(self, lengths: Sequence[int], new_tokens: int) -> int:
        """How many of these rows a batch takes, from the first on. Generating needs their KV cache and a few
        copies of their logits; scoring (new_tokens 0) keeps no cache, but what a layer makes of all tokens at
        once, and one block of logits whatever the rows."""
        torch, config = self._torch, self._model.model.config
        if self._model.device.type == "cuda":
            reserved = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            budget = 0.8 * (torch.cuda.mem_get_info()[0] + reserved)
        else:
            budget = CPU_BUDGET
        if new_tokens:
            head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
            a_token, a_row = 2 * config.num_hidden_layers * heads * head * 4, config.vocab_size * 4 * 6
        else:
            inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
            a_token, a_row = 4 * (3 * inner + 8 * config.hidden_size), config.vocab_size * 4
            budget -= OutputLayer(self._model.model).block_bytes
        rows = longest = 0
        for length in lengths[: self.max_batch]:
            longest = max(longest, length)  # to which all are padded
            mask = 0 if new_tokens else 4 * longest**2
            if (rows + 1) * ((longest + new_tokens) * a_token + mask + a_row) > budget:
                break
            rows += 1
        return max(rows, 1)

    # ---- what a batch does ----

    def _pad(self, batch: Sequence[Request]):
        """Left-padded ids and mask, (rows, longest)."""
        pad, width = self._model.tokenizer.pad_token_id, max(len(r.ids) for r in batch)
        ids = [[pad] * (width - len(r.ids)) + r.ids for r in batch]
        mask = [[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in batch]
        return (self._torch.tensor(rows, device=self._model.device) for rows in (ids, mask))

    def _generate(self, batch: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """about: the row's seed."""
        from cai.models.kv_cache import drop_caches, roomy  # it needs transformers

        tokenizer = self._model.tokenizer
        ids, mask = self._pad(batch)
        seeds = [r.about for r in batch]
        sampler = _RowSampler(sampling.temperature, seeds, len(tokenizer), self._model.device)
        own = {"past_key_values": roomy()} if self._model.device.type == "cpu" else {}
        out = self._model.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            use_cache=True,
            logits_processor=[sampler],
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=self._ends,
            stopping_criteria=self._stopping(sampling.stop),
            **own,
        )
        drop_caches(self._model.model)
        rows = out[:, ids.shape[1] :].tolist()
        return [self._completion(row, len(r.ids), sampling) for r, row in zip(batch, rows, strict=True)]

    def _stopping(self, stop: tuple[str, ...]) -> list:
        """The criterion for some stop strings, made once: to match them with a vocabulary of 152,064 takes
        seconds."""
        from transformers.generation.stopping_criteria import StopStringCriteria

        if stop and stop not in self._criteria:
            self._criteria[stop] = StopStringCriteria(self._model.tokenizer, list(stop))
        return [self._criteria[stop]] if stop else []

    def _completion(self, row: list[int], prompt_tokens: int, sampling: Sampling) -> Completion:
        return completion_of(self._model.tokenizer, self._ends, row, prompt_tokens, sampling)

    def _hidden(self, batch: Sequence[Request]):
        """(hidden states, ids), left-padded, and the layer that projects them."""
        ids, mask = self._pad(batch)
        model, layer = self._model.model, OutputLayer(self._model.model)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        hidden, logits = hidden_states(model, input_ids=ids, attention_mask=mask, position_ids=positions)
        if not self._scores_checked:
            layer.check(hidden[0, -1], logits[0])
            self._scores_checked = True
        return hidden, ids, layer

    def _next_token(self, batch: Sequence[Request]) -> list[list[float]]:
        """about: the options' token ids."""
        hidden, _, layer = self._hidden(batch)
        row_of = [row for row, r in enumerate(batch) for _ in r.about]
        options = self._torch.tensor([option for r in batch for option in r.about])
        found = iter(layer.log_probabilities(hidden[row_of, -1], options).tolist())
        return [list(itertools.islice(found, len(r.about))) for r in batch]

    def _score(self, batch: Sequence[Request]) -> list[Score]:
        """about: the continuation's length in tokens."""
        hidden, ids, layer = self._hidden(batch)
        tails = self._torch.zeros_like(ids, dtype=self._torch.bool)
        for row, r in zip(tails, batch, strict=True):
            row[-r.about :] = True
        before = tails.roll(-1, dims=1)  # a prompt has a token, so no tail begins at the first place
        found = iter(layer.log_probabilities(hidden[before], ids[tails]).tolist())
        rows = [tuple(itertools.islice(found, r.about)) for r in batch]
        return [Score(sum(row), row) for row in rows]


class _RowSampler:
    """A logits processor that samples each row with its own generator, as noise before an argmax.

    The logits are the model's own, on a GPU bfloat16: between 16 and 32 in steps of 0.125, so that the odds
    of two tokens are up to 13 % off at temperature 1, and tokens of one step are alike (greedy takes the
    first). Scores do not come from them: see models/scores.py."""

    def __init__(self, temperature: float, seeds: Sequence[int], vocabulary: int, device):
        import torch

        self.torch, self.temperature, self.vocabulary = torch, temperature, vocabulary
        self.generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
        self.noise = None

    def __call__(self, input_ids, scores):
        scores = scores.float()
        scores[:, self.vocabulary :] = float("-inf")  # ids that the embedding has but the tokenizer does not
        if self.temperature <= 0:
            return scores
        if self.noise is None:
            self.noise = self.torch.empty_like(scores)
        for row, generator in zip(self.noise, self.generators, strict=True):
            row.uniform_(generator=generator)
        gumbel = self.noise.log().neg_().log_().neg_()  # -log(-log(u)); u = 0 is never drawn
        return scores.div_(self.temperature).add_(gumbel)


def _as_list(value) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
