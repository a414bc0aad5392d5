"""The in-process engine: text in, text out, batched, each row with a seed of its own.

A row's text depends on its prompt, the sampling and its seed, not on the rows beside it: its noise comes from
its own generator (the Gumbel-max trick: the argmax of logits/T plus Gumbel noise is a sample of
softmax(logits/T)). What is left is the rounding of batched matrix products: in float32 about 1e-5 in a logit,
so that about one token in 10^5 could flip; in bfloat16 about 1e-2, so that long texts may part ways between
two batch sizes on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cai.core.errors import UserError
from cai.models.engine import Completion, Sampling, Score
from cai.models.model import Model
from cai.prompts.markers import CHAT_TOKENS

CPU_BUDGET = 4e9  # bytes that one batch may take on a CPU


class LocalEngine:
    """The engine contract over a model in this process. progress: called with (rows done, rows in all) after
    each batch."""

    def __init__(
        self,
        model: Model,
        *,
        max_batch: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        import torch
        from transformers import GenerationConfig

        self.model, self.progress = model, progress
        self.max_batch = max_batch or model.spec.max_batch
        tokenizer, config = model.tokenizer, model.model.generation_config
        ends = {tokenizer.eos_token_id, *_as_list(config.eos_token_id)}
        ends |= {i for t in CHAT_TOKENS if (i := tokenizer.get_vocab().get(t)) is not None}
        self.ends = sorted(ends - {None})
        # A checkpoint's own sampling defaults (top-k, repetition penalty, ...) must not slip into ours.
        model.model.generation_config = GenerationConfig(
            eos_token_id=self.ends, pad_token_id=tokenizer.pad_token_id
        )
        self._torch = torch
        self._criteria: dict[tuple[str, ...], Any] = {}

    def complete(
        self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int], adapter: str | None = None
    ) -> list[Completion]:
        """One completion a prompt, in the prompts' order. Raises UserError if a base model's prompt holds a
        chat token."""
        assert len(prompts) == len(seeds), f"{len(prompts)} prompts, {len(seeds)} seeds"
        self._guard(prompts)
        ids = [self.model.tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
        done: list[Completion | None] = [None] * len(prompts)
        room = self.model.spec.max_seq_length - sampling.max_tokens
        for i, row in enumerate(ids):
            if len(row) > room:
                done[i] = Completion("", 0, len(row), "too_long")
        waiting = sorted((i for i in range(len(ids)) if done[i] is None), key=lambda i: len(ids[i]))
        self.model.for_inference()
        with self.model.using(adapter):
            for batch, rows in self._batches(
                waiting, ids, sampling.max_tokens, self._generate, sampling, seeds
            ):
                for i, completion in zip(batch, rows, strict=True):
                    done[i] = completion
                if self.progress:
                    self.progress(sum(d is not None for d in done), len(done))
        return done

    def logprobs(
        self, prompts: Sequence[str], continuations: Sequence[str], adapter: str | None = None
    ) -> list[Score]:
        """The log-probability of each continuation after its prompt; both are tokenized on their own, as in
        training."""
        assert len(prompts) == len(continuations), (
            f"{len(prompts)} prompts, {len(continuations)} continuations"
        )
        self._guard(prompts)
        encode = lambda text: self.model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        pairs = [(encode(p), encode(c)) for p, c in zip(prompts, continuations, strict=True)]
        for (head, tail), text in zip(pairs, continuations, strict=True):
            if not head or not tail:
                raise UserError(
                    f"logprobs needs a prompt and a continuation of at least one token, got {text[:40]!r}"
                )
            if len(head) + len(tail) > self.model.spec.max_seq_length:
                raise UserError(
                    f"prompt and continuation have {len(head) + len(tail)} tokens, the context of "
                    f"{self.model.spec.name} "
                    f"is {self.model.spec.max_seq_length}: shorten them"
                )
        whole = [head + tail for head, tail in pairs]
        done: list[Score | None] = [None] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: len(whole[i]))
        self.model.for_inference()
        with self.model.using(adapter):
            for batch, rows in self._batches(order, whole, 0, self._score, [len(tail) for _, tail in pairs]):
                for i, score in zip(batch, rows, strict=True):
                    done[i] = score
        return done

    # ---- batches ----

    def _batches(self, order: list[int], ids: list[list[int]], new_tokens: int, work: Callable, *about):
        """Yields (indices, results) in batches of similar length that fit the memory; halves a batch that
        does not."""
        torch, position, limit = self._torch, 0, self.max_batch
        while position < len(order):
            batch = order[
                position : position + min(limit, self._rows_that_fit(order, position, ids, new_tokens))
            ]
            try:
                results = work(batch, ids, *about)
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise UserError(
                        f"the GPU has no memory left for one row of {len(ids[batch[0]])} + {new_tokens} "
                        "tokens: load the "
                        f"model with fewer --bits, or stop what else runs on this GPU (nvidia-smi)"
                    ) from None
                torch.cuda.empty_cache()
                limit = len(batch) // 2
                continue
            yield batch, results
            position += len(batch)

    def _rows_that_fit(self, order: list[int], position: int, ids: list[list[int]], new_tokens: int) -> int:
        """How many rows from here on the memory takes: their KV cache, and a few copies of their logits."""
        torch, config = self._torch, self.model.model.config
        if self.model.device.type == "cuda":
            budget = 0.8 * (
                torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            )
        else:
            budget = CPU_BUDGET
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        bytes_a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 4
        rows = 0
        for i in order[position : position + self.max_batch]:
            length = len(ids[i]) + new_tokens  # ascending: the latest is the longest, to which all are padded
            logits = config.vocab_size * 4 * (6 if new_tokens else len(ids[i]))
            if (rows + 1) * (length * bytes_a_token + logits) > budget:
                break
            rows += 1
        return max(rows, 1)

    def _pad(self, batch: list[int], ids: list[list[int]]):
        """Left-padded ids and mask, (rows, longest)."""
        torch, pad = self._torch, self.model.tokenizer.pad_token_id
        width = max(len(ids[i]) for i in batch)
        padded = torch.tensor(
            [[pad] * (width - len(ids[i])) + ids[i] for i in batch], device=self.model.device
        )
        mask = torch.tensor(
            [[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in batch], device=self.model.device
        )
        return padded, mask

    def _generate(
        self, batch: list[int], ids: list[list[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:

        from cai.models.kv_cache import roomy  # it needs transformers

        torch, tokenizer = self._torch, self.model.tokenizer
        padded, mask = self._pad(batch, ids)
        sampler = _RowSampler(
            sampling.temperature, [seeds[i] for i in batch], len(tokenizer), self.model.device
        )
        own = {"past_key_values": roomy()} if self.model.device.type == "cpu" else {}
        with torch.inference_mode():
            out = self.model.model.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=sampling.max_tokens,
                do_sample=False,
                use_cache=True,
                logits_processor=[sampler],
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=self.ends,
                stopping_criteria=self._stopping(tuple(sampling.stop)),
                **own,
            )
        rows = out[:, padded.shape[1] :].tolist()
        return [self._completion(row, len(ids[i]), sampling) for i, row in zip(batch, rows, strict=True)]

    def _stopping(self, stop: tuple[str, ...]) -> list:
        """The criterion for some stop strings, made once: to match them with a vocabulary of 152,064 takes
        seconds."""
        from transformers.generation.stopping_criteria import StopStringCriteria

        if stop and stop not in self._criteria:
            self._criteria[stop] = StopStringCriteria(self.model.tokenizer, list(stop))
        return [self._criteria[stop]] if stop else []

    def _completion(self, row: list[int], prompt_tokens: int, sampling: Sampling) -> Completion:
        """Cuts a generated row at its end token or its first stop string. Rows that end early are padded
        behind."""
        pad = self.model.tokenizer.pad_token_id
        end = next((k for k, token in enumerate(row) if token in self.ends or token == pad), None)
        text = self.model.tokenizer.decode(row[:end], skip_special_tokens=True)
        stops = (*sampling.stop, *CHAT_TOKENS)  # even spelt in pieces: no later prompt may hold one
        found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            return Completion(text[:at].strip(), len(row[:end]), prompt_tokens, "stop", stop)
        if end is not None:
            return Completion(text.strip(), end + 1, prompt_tokens, "stop", "<eos>")
        return Completion(text.strip(), len(row), prompt_tokens, "length")

    def _score(self, batch: list[int], ids: list[list[int]], tails: list[int]) -> list[Score]:
        torch = self._torch
        padded, mask = self._pad(batch, ids)
        keep = max(tails[i] for i in batch) + 1
        with torch.inference_mode():
            logits = self.model.model(
                input_ids=padded,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=keep,
            ).logits
            targets = padded[:, -(keep - 1) :]
            logp = torch.log_softmax(logits[:, -keep:-1].float(), dim=-1).gather(2, targets[..., None])[
                ..., 0
            ]  # (rows, keep - 1)
        scores = []
        for i, row in zip(batch, logp.tolist(), strict=True):
            own = tuple(row[len(row) - tails[i] :])
            scores.append(Score(sum(own), own))
        return scores

    def _guard(self, prompts: Sequence[str]) -> None:
        if self.model.spec.kind != "base":
            return
        for number, prompt in enumerate(prompts):
            for token in CHAT_TOKENS:
                if token in prompt:
                    raise UserError(
                        f"prompt {number} holds the chat token {token}: a base model must never see one, it "
                        "would act "
                        f"like a tuned model; remove it from the instruction"
                    )


class _RowSampler:
    """A logits processor that samples each row with its own generator, as noise before an argmax."""

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
