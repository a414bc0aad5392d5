"""The engine of servers: any number of OpenAI-compatible /v1/completions endpoints, ours or somebody else's.

Nothing is asked of a server before the first request. That one, and the first after release(), finds the
servers and checks them (models/server_checks.py). Which server gets what, and what is tried again, is
models/endpoints.py; what is sent and what must come back, models/completions_api.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from cai.core.errors import RERUN, UserError
from cai.core.ledger import STEP, Usage
from cai.core.text import one_line
from cai.models.chat import chat_template
from cai.models.completion import end_tokens
from cai.models.completions_api import CompletionsApi, Target, words_of
from cai.models.endpoints import ROWS, Endpoint, Endpoints, client
from cai.models.engine import Completion, Sampling, Score, check_scored, must_fit, single_tokens
from cai.models.model import check_adapter, saved_adapter
from cai.models.registry import ModelSpec
from cai.models.server_checks import Checks
from cai.models.server_key import KEY, is_loopback, server_key
from cai.prompts.markers import END_OF_TEXT

T = TypeVar("T")
CAVEAT = "a server's rounding depends on which requests share its batch: texts may differ between two runs"


class Servers(Protocol):
    """Who runs the servers. name: "vllm" (ours) or "server" (somebody else's). number: how many."""

    name: str
    number: int

    def urls(self) -> Sequence[str]:
        """Their URLs, without /v1. Ours starts what is not running and waits for it. Raises UserError."""

    def load_adapter(self, path: Path, served: str) -> None:
        """Makes an adapter available under a name: now if they run, else at their start. Raises UserError."""

    def stop(self) -> None:
        """Ours gives the GPU back; others' nothing."""


class FixedServers:
    """Servers that somebody else runs, by their URLs."""

    name = "server"

    def __init__(self, urls: Sequence[str]):
        self._urls = [checked_url(url) for url in urls]
        self.number = len(self._urls)
        if len(set(self._urls)) < len(self._urls):
            raise UserError(f"--engine names a server twice: {', '.join(self._urls)}")

    def urls(self) -> Sequence[str]:
        return self._urls

    def load_adapter(self, path: Path, served: str) -> None:
        """On every server that answers; the others are asked again when they are back."""
        with client("OpenAI") as asked:
            reached = [url for url in self._urls if self._load(asked, url, path, served)]
        if not reached:
            raise UserError(f"none of the servers answers ({', '.join(self._urls)}): start them, then rerun")

    def _load(self, asked: Any, url: str, path: Path, served: str) -> bool:
        import openai

        way_out = (
            f"start it with --enable-lora --lora-modules {served}={path.resolve()}, "
            "or use --engine local for what needs the adapter"
        )
        try:
            cards = asked.get(url + "/v1/models", cast_to=object)["data"]
            if served not in [card["id"] for card in cards]:
                body = {"lora_name": served, "lora_path": str(path.resolve())}
                asked.post(url + "/v1/load_lora_adapter", cast_to=object, body=body)
        except openai.APIConnectionError:
            return False
        except openai.APIStatusError as error:
            said = f"status {error.status_code}: {words_of(error)}"
            raise UserError(
                f"the server {url} does not load the adapter {path} ({said}): {way_out}"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"the server {url} does not list its models: {way_out}") from None
        return True

    def stop(self) -> None:
        pass


def checked_url(text: str) -> str:
    """A server's URL, without /v1. Prompts may travel unencrypted, a key may not."""
    url = text.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    shown = one_line(text)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port that is no number raises
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise UserError(f"--engine {shown}: no URL of a server; it looks like http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"--engine: the URL of {one_line(host)} holds more than host, port and path: "
            f"a key belongs into the environment variable {KEY}"
        )
    if server_key() and parts.scheme == "http" and not is_loopback(host):
        raise UserError(
            f"--engine {shown}: {KEY} would be sent unencrypted: use https, a tunnel to this machine "
            f"(ssh -L), or unset {KEY}"
        )
    return url


class ServerEngine:
    """See models.engine.Engine. tokenizer: the model's own, loaded here; prompts go as its tokens. rows:
    requests that a server has at a time. noise: the weights are random, to measure speed: what they find
    likely is no sign of a wrong model."""

    def __init__(
        self,
        spec: ModelSpec,
        servers: Servers,
        tokenizer: Any,
        *,
        bits: int,
        precision: str,
        revision: str | None,
        device: str,
        deterministic: bool = False,
        rows: int = ROWS,
        noise: bool = False,
        log: Callable[[str], None] = print,
    ):
        self.name, self.spec, self.bits, self.precision = servers.name, spec, bits, precision
        self.revision, self.device = revision, device
        self.caveat = None if deterministic else CAVEAT
        self.adapters: dict[str, str] = {}
        self.usage: dict[str, Usage] = {}
        self.end_of_text = tokenizer.eos_token
        self.chat = chat_template(spec, tokenizer)
        self._servers, self._tokenizer, self._rows, self._log = servers, tokenizer, rows, log
        ends = end_tokens(tokenizer, [tokenizer.get_vocab().get(END_OF_TEXT)])
        self._api = CompletionsApi(tokenizer, ends, spec.max_seq_length)
        told = {"revision": revision, "bits": bits, "precision": precision, "noise": noise}
        self._checks = Checks(spec, self._api, servers, **told)
        self._endpoints: Endpoints | None = None
        self._flying: Counter[str] = Counter()
        self._since = 0.0

    # ---- the contract ----

    # An example asks for several things side by side, so that one for each row keeps the servers busy
    # (specs/engines.md has the figures).
    capacity = property(lambda self: self._rows * self._servers.number)

    def load_adapter(self, path: Path, name: str) -> None:
        source = (self.spec.source(self.bits)[0], self.revision) if self.revision else None
        fact = check_adapter(path, self.spec, source)
        if name in self.adapters:
            raise UserError(f"an adapter named {name!r} is loaded already: {', '.join(self.adapters)}")
        served = _served(fact["sha256"])
        self._servers.load_adapter(path, served)
        self.adapters[name], self._checks.adapters[served] = fact["sha256"], path

    def release(self) -> None:
        self._endpoints = None
        self._checks.forget()
        self._servers.stop()

    async def complete(
        self, prompt: str, sampling: Sampling, seed: int, adapter: str | None = None
    ) -> Completion:
        ids = self._encode(prompt)
        if len(ids) > self.spec.max_seq_length - sampling.max_tokens:
            return Completion("", 0, len(ids), "too_long")
        return await self._ask(adapter, len(ids), lambda at: self._api.generate(at, ids, sampling, seed))

    async def choose(
        self, prompt: str, options: Sequence[str], adapter: str | None = None
    ) -> dict[str, float]:
        wanted = single_tokens(options, [self._encode(option) for option in options])
        ids = self._encode(prompt)
        must_fit(self.spec, len(ids) + 1)
        found = await self._ask(adapter, len(ids), lambda at: self._api.next_token(at, ids, wanted))
        return dict(zip(options, found, strict=True))

    async def logprobs(self, prompt: str, continuation: str, adapter: str | None = None) -> Score:
        head, tail = self._encode(prompt), self._encode(continuation)
        check_scored(self.spec, head, tail, continuation)
        ids = head + tail
        found = await self._ask(adapter, len(ids), lambda at: self._api.score(at, ids, len(tail)))
        return Score(sum(found), tuple(found))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    # ---- requests ----

    async def _ask(
        self, adapter: str | None, prompt_tokens: int, work: Callable[[Target], Awaitable[T]]
    ) -> T:
        if adapter is not None and adapter not in self.adapters:
            raise UserError(
                f"no adapter {adapter!r} is loaded; there are: {', '.join(self.adapters) or 'none'}"
            )
        served, step = adapter and _served(self.adapters[adapter]), STEP.get()

        async def on(endpoint: Endpoint, asked: Any) -> T:
            if served:
                await self._checks.adapter(endpoint.url, asked, served)
            with self._in_flight(step):
                return await work(Target(asked, endpoint.url, served or endpoint.model))

        result = await self._of_this_loop().ask(served, on)
        used = self.usage.setdefault(step, Usage())
        used.prompt_tokens += prompt_tokens
        used.completion_tokens += result.tokens if isinstance(result, Completion) else 0
        return result

    def _of_this_loop(self) -> Endpoints:
        """Connections belong to an event loop, and together() begins one each time."""
        if self._endpoints is None or self._endpoints.loop is not asyncio.get_running_loop():
            self._endpoints = Endpoints(self._urls, self._checks, self._rows, self._log)
        return self._endpoints

    def _urls(self) -> Sequence[str]:
        """Of servers that are started, or have been: they read the adapters again, which must be the same."""
        for served, path in self._checks.adapters.items():
            if _served(saved_adapter(path)["sha256"]) != served:
                raise UserError(
                    f"the adapter {path} is another one than when this run began: restore it, then {RERUN}"
                )
        return self._servers.urls()

    @contextlib.contextmanager
    def _in_flight(self, step: str) -> Iterator[None]:
        """The time in which requests are in flight is shared among their steps, at each moment by how many
        each has: together they come to what the clock says."""
        self._share_time()
        self._flying[step] += 1
        try:
            yield
        finally:
            self._share_time()
            self._flying[step] -= 1

    def _share_time(self) -> None:
        now, flying = time.perf_counter(), self._flying.total()
        for step, number in self._flying.items():
            if number:
                self.usage.setdefault(step, Usage()).seconds += (now - self._since) * number / flying
        self._since = now


def _served(adapter_hash: str) -> str:
    """By its hash: a name on a server never means two adapters."""
    return f"adapter-{adapter_hash[:12]}"
