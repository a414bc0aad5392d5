"""What a server must show before it works for a run: the right model, tokens, log-probabilities, seeds; and
of an adapter, that it changes anything. Raises Fault (another try may mend it) or UserError."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any, Protocol

from cai.core.errors import UserError
from cai.core.text import one_line
from cai.models import probe
from cai.models.completions_api import (
    CONNECT_SECONDS,
    SAID,
    CompletionsApi,
    Fault,
    Target,
    call,
    choice_of,
)
from cai.models.endpoints import Endpoint, in_a_thread
from cai.models.engine import Sampling
from cai.models.registry import ModelSpec

TEXT = (
    "In 1987, 3 of 12 towns\n\t(25 %) had 1,024 lamps: naïve? Größe, 漢字, 😀."
    "\n\n<|endoftext|> def f(x):\n    return x"
)
DRAWN = Sampling(2.0, 16)  # hot, so that two seeds do not come to the same text
ROUNDS = 3  # tries for one seed to give its text again: other people's requests change a batch's rounding
ONE_TOKEN = {"float32": 0.01}  # nats that two ways to ask for one token's log-probability may differ by ...
ONE_TOKEN_ROUNDED = 0.3  # ... and in fewer bits
CHANCE = 0.8  # a passage is implausible that comes so near to an even guess (share of its nats)


class Adapters(Protocol):
    def load_adapter(self, path: Path, served: str) -> None: ...


class Checks:
    """See models.endpoints.Checks. adapters: served name -> directory, of those that servers must have.
    noise: see ServerEngine."""

    def __init__(
        self,
        spec: ModelSpec,
        api: CompletionsApi,
        servers: Adapters,
        *,
        revision: str | None,
        bits: int,
        precision: str,
        noise: bool,
    ):
        self._spec, self._api, self._servers = spec, api, servers
        self._revision, self._bits, self._precision, self._noise = revision, bits, precision, noise
        self.adapters: dict[str, Path] = {}
        self.seen = False
        self._models: dict[str, str] = {}  # url -> the base model's name, of those that were checked
        self._base: dict[str, list[float]] = {}  # url -> the probe's values
        self._shown: dict[tuple[str, str], asyncio.Task] = {}  # (url, adapter) -> its check
        head, tail = probe.passage(spec)
        self._head, self._tail = self._encode(head), self._encode(tail)

    def forget(self) -> None:
        self.seen = False
        for url in list(self._models):
            self.gone(url)

    def gone(self, url: str) -> None:
        self._models.pop(url, None)
        for key in [key for key in self._shown if key[0] == url]:
            del self._shown[key]

    def _encode(self, text: str) -> list[int]:
        return self._api.tokenizer(text, add_special_tokens=False)["input_ids"]

    async def admit(self, endpoint: Endpoint, client: Any) -> None:
        url = endpoint.url
        if url not in self._models:
            at = Target(client, url, await self._served_model(client, url))
            await self._tokens(at)
            await self._logprobs(at)
            await self._seeds(at)
            self._models[url], self.seen = at.model, True
        endpoint.model = self._models[url]

    async def adapter(self, url: str, client: Any, served: str) -> None:
        """Once for each server, whatever asks at the same time."""
        task = self._shown.get((url, served))
        broken_off = task and (task.cancelled() or task.get_loop().is_closed() and not task.done())
        if task is None or broken_off:
            task = asyncio.ensure_future(self._changes_something(Target(client, url, served)))
            self._shown[url, served] = task
        try:
            await asyncio.shield(task)
        except Fault:
            self._shown.pop((url, served), None)
            raise

    # ---- one by one ----

    async def _served_model(self, client: Any, url: str) -> str:
        """The name under which the base model is served; adapters that are missing are loaded."""
        try:
            cards = (await call(client, url + "/v1/models", seconds=CONNECT_SECONDS))["data"]
            names = [card["id"] for card in cards]
            bases = [card for card in cards if not card.get("parent")]
            fitting = [card for card in bases if self._is_ours(str(card.get("root") or card["id"]))]
        except (KeyError, TypeError, AttributeError):
            raise Fault("no list of its models") from None
        if not fitting:
            there = one_line(", ".join(str(c.get("root") or c["id"]) for c in bases))[:SAID] or "no model"
            raise UserError(
                f"the server {url} serves {there}, not {self._wanted()}: give the URL of one that does"
            )
        context = fitting[0].get("max_model_len")
        if isinstance(context, int) and context < self._spec.max_seq_length:
            raise UserError(
                f"the server {url} reads {context} tokens, this run needs {self._spec.max_seq_length}: "
                f"start it with --max-model-len {self._spec.max_seq_length}, "
                f"or give --set max_seq_length={context}"
            )
        for served, path in self.adapters.items():
            if served not in names:
                await in_a_thread(self._servers.load_adapter, path, served)
        return fitting[0]["id"]

    def _wanted(self) -> str:
        return self._spec.repo + (f" at revision {self._revision[:12]}" if self._revision else "")

    def _is_ours(self, root: str) -> bool:
        """By the last part of its name, and by the commit where it lies in a hub's cache."""
        name, commit = _name_and_commit(root)
        ours = {self._spec.repo, self._spec.repo_4bit or "", self._spec.name}
        same_commit = None in (commit, self._revision) or commit == self._revision
        return name in {_name_and_commit(repo)[0] for repo in ours} and same_commit

    async def _tokens(self, at: Target) -> None:
        wanted = self._encode(TEXT)
        try:
            body = {"model": at.model, "prompt": TEXT, "add_special_tokens": False}
            found = (await call(at.client, at.url + "/tokenize", body))["tokens"]
        except (Fault, UserError, KeyError, TypeError):  # there is no such page
            body |= {"max_tokens": 1, "temperature": 0.0, "return_token_ids": True}
            answer = await call(at.client, at.url + "/v1/completions", body)
            used = answer.get("usage") if isinstance(answer, dict) else None
            count = used.get("prompt_tokens") if isinstance(used, dict) else None
            ids = choice_of(answer).get("prompt_token_ids")
            found = ids if isinstance(ids, list) else wanted if count == len(wanted) else []
        if found != wanted:
            raise UserError(
                f"the server {at.url} has another tokenizer than {self._wanted()}: give the URL of one that "
                "serves the same files"
            )

    async def _logprobs(self, at: Target) -> None:
        """Finite, plausible, the same however they are asked for, and those of the same model here."""
        ids, first = [*self._head, *self._tail], self._tail[0]
        values = await self._api.score(at, ids, len(self._tail))
        [chosen, _] = await self._api.next_token(at, self._head, [first, self._tail[-1]])
        forced = await self._api.forced(at, self._head, first)
        apart = max(abs(values[0] - chosen), abs(values[0] - forced))
        if apart > ONE_TOKEN.get(self._precision, ONE_TOKEN_ROUNDED):
            raise UserError(
                f"the server {at.url} gives one token two log-probabilities ({values[0]:.3f} in a prompt, "
                f"{chosen:.3f} and {forced:.3f} as the next token): start it with vLLM's default "
                "--logprobs-mode raw_logprobs"
            )
        mean, even = sum(values) / len(values), -math.log(len(self._api.tokenizer))
        if mean < CHANCE * even and not self._noise:
            raise UserError(
                f"the server {at.url} finds a plain passage as unlikely as random tokens ({mean:.1f} nats a "
                f"token): its weights are not those of {self._wanted()}; start it with them"
            )
        if known := probe.expected(self._spec, self._revision, self._bits, len(values)):
            wanted, same_bits = known
            off, most = probe.distance(values, wanted), probe.tolerance(self._precision, same_bits)
            if off > most:
                raise UserError(
                    f"the server {at.url} gives other log-probabilities than {self._wanted()} had here "
                    f"({off:.3f} nats a token apart, at most {most} would be rounding): give the URL of one "
                    "with the same weights"
                )
        self._base[at.url] = values

    async def _seeds(self, at: Target) -> None:
        drawn = [await self._api.generate(at, self._head, DRAWN, seed) for seed in range(1, 1 + ROUNDS)]
        again = [await self._api.generate(at, self._head, DRAWN, seed) for seed in range(1, 1 + ROUNDS)]
        if not any(a == b for a, b in zip(drawn, again, strict=True)) or len({d.text for d in drawn}) == 1:
            raise UserError(
                f"the server {at.url} ignores the seed of a request, so that no run could be repeated: "
                "use vLLM, or --engine local"
            )

    async def _changes_something(self, at: Target) -> None:
        values = await self._api.score(at, [*self._head, *self._tail], len(self._tail))
        path = self.adapters[at.model]
        if values == self._base[at.url] and not await in_a_thread(_is_zero, path):
            raise UserError(
                f"the server {at.url} answers with the base model where the adapter {path} is asked for: "
                "start it with --enable-lora, or use --engine local for what needs the adapter"
            )


def _name_and_commit(root: str) -> tuple[str, str | None]:
    """("qwen2.5-32b", its commit) of Qwen/Qwen2.5-32B, of a directory of that name, or of its place in the
    hub's cache: models--Qwen--Qwen2.5-32B/snapshots/<commit>."""
    parts = root.rstrip("/").split("/")
    commit = parts[-1] if len(parts) > 2 and parts[-2] == "snapshots" else None
    name = parts[-3].split("--")[-1] if commit else parts[-1]
    return name.lower(), commit


def _is_zero(path: Path) -> bool:
    """An adapter as training begins with it: its B matrices are 0, and it rightly changes nothing."""
    from safetensors import safe_open

    with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
        return not any(file.get_tensor(name).any() for name in file.keys() if "lora_B" in name)
