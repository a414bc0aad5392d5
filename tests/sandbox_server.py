"""An OpenAI-compatible server for tests: the sandbox on loopback, with vLLM's request and response forms.

    python tests/sandbox_server.py --port 0                    # prints its URL once it answers
    python tests/sandbox_server.py --port 8123 --lora tuned=checkpoints/mvp --fault half_json=3

It answers /health, /v1/models, /tokenize, /v1/completions and /v1/load_lora_adapter, and has the faults of
FAULTS on command: by --fault, by POST /faults {"half_json": 3} (a number: so many answers; true: until
POST /faults {}), in a test by `faults`. Batches are a LocalEngine's, so that texts are those of the local
engine. It knows what it needs to: prompts one at a time, log-probabilities of one generated token.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gzip
import json
import math
import os
import signal
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from cai.core.errors import UserError  # noqa: E402
from cai.models.engine import Completion, Sampling  # noqa: E402
from cai.models.local_engine import LocalEngine  # noqa: E402

FAULTS = {
    "dead": "every connection is closed without an answer",
    "drop": "a completion's connection is closed without an answer",
    "hang": "a completion is answered only when this fault is taken back",
    "half_json": "the second half of the answer is missing",
    "error_500": "a completion fails, /health does not",
    "error_400": "a completion is refused",
    "no_choices": "the list of choices is empty",
    "no_token_ids": "a text without its tokens",
    "bad_token_ids": "a token that no tokenizer has",
    "many_token_ids": "more tokens than were asked for",
    "deep_json": "brackets in brackets",
    "packed": "an answer that is packed, though nobody asked for it",
    "endless": "an answer without end",
    "says_key": "a completion is refused, in words that repeat the request's key",
    "own_text": "a text that is not that of its tokens, with a token of a chat in it",
    "nan_logprobs": "log-probabilities that are no numbers",
    "no_seed": "the seed is ignored",
    "no_logprobs": "log-probabilities are ignored",
    "flat_logprobs": "log-probabilities of another distribution, where a continuation is scored",
    "no_option_ids": "an older vLLM: logprob_token_ids is ignored, the most likely tokens are given",
    "no_allowed": "allowed_token_ids is ignored",
    "other_model": "another model's name",
    "other_weights": "the right name, all scores half a nat off",
    "untrained": "the right name, scores of random weights",
    "other_tokenizer": "other tokens for the same text",
    "no_tokenize": "there is no /tokenize",
    "short_context": "a context of half the length",
    "no_lora": "adapters cannot be loaded",
    "lora_ignored": "adapters are loaded, the base model answers",
}


@dataclasses.dataclass(frozen=True)
class Generated(Completion):
    """ids: all generated tokens, the end's or the stop string's included."""

    ids: tuple[int, ...] = ()


class Batches(LocalEngine):
    """A local engine that is asked in tokens and says which tokens it generated."""

    def _completion(self, row, prompt_tokens, sampling):
        done = super()._completion(row, prompt_tokens, sampling)
        return Generated(**dataclasses.asdict(done), ids=tuple(row[: done.tokens]))

    async def generate(self, ids, sampling, seed, adapter):
        return await self._ask((self._generate, adapter, sampling), ids, seed)

    async def next_token(self, ids, adapter):
        """The log-probabilities of the whole vocabulary."""
        return await self._ask((self._next_token, adapter), ids, list(range(len(self._model.tokenizer))))

    async def score(self, ids, adapter):
        """The log-probabilities of all tokens but the first."""
        return (await self._ask((self._score, adapter), ids, len(ids) - 1)).tokens


class Refused(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class SandboxServer:
    """model: a loaded sandbox. key: what a client must name. requests: bodies of all completions that were
    asked for. came: called with their number. mixed: models whose rows were in flight together. most:
    rows that were, at a time."""

    def __init__(self, model, *, port: int = 0, name=None, key=None):
        self.model, self.name, self.key = model, name or model.spec.repo, key
        self.faults: dict[str, int | bool] = {}
        self.came = lambda number: None
        self.adapters: dict[str, str] = {}  # served name -> directory
        self.requests, self.flying, self.mixed, self.most = [], Counter(), set(), 0
        self.healed, self._lock = threading.Event(), threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._engine = Batches(model)
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._http = _Http(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._threads = [
            threading.Thread(target=self._loop.run_forever, daemon=True),
            threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True),
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self.faults = {"dead": True}
        self.healed.set()
        self._http.shutdown()
        self._http.server_close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            thread.join()

    def heal(self, **faults):
        """Takes all faults back, or sets others."""
        unknown = faults.keys() - FAULTS
        assert not unknown, f"no such faults: {unknown}"
        self.faults = faults
        self.healed.set()
        self.healed = threading.Event()

    def faulty(self, name: str) -> bool:
        with self._lock:
            left = self.faults.get(name, 0)
            if left and left is not True:
                self.faults[name] = left - 1
            return bool(left)

    # ---- what it answers ----

    @property
    def context(self) -> int:
        return self.model.spec.max_seq_length // (2 if self.faults.get("short_context") else 1)

    def models(self):
        name = "someone/else" if self.faults.get("other_model") else self.name
        cards = [{"id": name, "root": name, "parent": None, "max_model_len": self.context}]
        cards += [{"id": a, "root": d, "parent": name} for a, d in self.adapters.items()]
        return {"object": "list", "data": [{"object": "model", "owned_by": "vllm", **card} for card in cards]}

    def encode(self, text: str) -> list[int]:
        ids = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids[::-1], 1] if self.faults.get("other_tokenizer") else ids

    def tokenize(self, body):
        if self.faults.get("no_tokenize"):
            raise Refused(404, "Not Found")
        tokens = self.encode(body["prompt"])
        return {"count": len(tokens), "max_model_len": self.context, "tokens": tokens}

    def load_lora(self, body):
        name, path = body["lora_name"], body["lora_path"]
        if self.faults.get("no_lora"):
            raise Refused(404, "Not Found")
        if name in self.adapters:
            raise Refused(400, f"The lora adapter '{name}' has already been loaded.")
        self._do(self._load(name, path))
        self.adapters[name] = path
        return {}

    async def _load(self, name, path):
        try:
            self._engine.load_adapter(Path(path), name)
        except (UserError, OSError) as error:
            raise Refused(404, f"No adapter found for '{name}': {error}") from None

    def complete(self, body):
        self.requests.append(body)
        self.came(len(self.requests))
        if self.faulty("error_500"):
            raise Refused(500, "EngineCore encountered an issue.")
        if self.faulty("error_400"):
            raise Refused(400, "this prompt is not to the server's liking")
        adapter = self._adapter(body["model"])
        prompt, new = body["prompt"], body.get("max_tokens", 16)
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        if not ids or len(ids) + max(new, 1) > self.context:
            raise Refused(400, f"This model's maximum context length is {self.context} tokens.")
        if len(body.get("stop") or ()) > 4:
            raise Refused(400, "at most 4 stop strings")
        with self._in_flight(body["model"]):
            choice, tokens = self._do(self._choice(body, ids, None if self._ignores(adapter) else adapter))
        if self.faulty("no_token_ids"):
            del choice["token_ids"]
        used = {"prompt_tokens": len(ids), "completion_tokens": tokens, "total_tokens": len(ids) + tokens}
        if self.faulty("bad_token_ids"):
            choice["token_ids"] = [-5]
        if self.faulty("many_token_ids"):
            choice["token_ids"] = [*ids] * new
        if self.faulty("own_text"):
            choice |= {"token_ids": choice["token_ids"][:3], "finish_reason": "stop"}
            choice["text"] = "<|im_start|>system"
        choices = [] if self.faulty("no_choices") else [choice]
        return {"object": "text_completion", "model": body["model"], "choices": choices, "usage": used}

    def _adapter(self, name):
        if name in self.adapters:
            return name
        if name != self.models()["data"][0]["id"]:
            raise Refused(404, f"The model `{name}` does not exist.")
        return None

    def _ignores(self, adapter):
        return adapter is not None and self.faults.get("lora_ignored")

    def _in_flight(self, name):
        server = self

        class Flying:
            def __enter__(self):
                with server._lock:
                    server.flying[name] += 1
                    server.flying += Counter()
                    server.most = max(server.most, server.flying.total())
                    if len(server.flying) > 1:
                        server.mixed.add(frozenset(server.flying))

            def __exit__(self, *exc):
                with server._lock:
                    server.flying[name] -= 1
                    server.flying += Counter()

        return Flying()

    async def _choice(self, body, ids, adapter):
        """(a choice as vLLM gives it, how many tokens were generated)"""
        if body.get("logprobs") is not None or body.get("prompt_logprobs") is not None:
            assert body["max_tokens"] == 1, "log-probabilities are of one token"
            return await self._scored(body, ids, adapter), 1
        sampling = Sampling(body.get("temperature", 1.0), body["max_tokens"], tuple(body.get("stop") or ()))
        seed = len(self.requests) if self.faults.get("no_seed") else body.get("seed") or 0
        done = await self._engine.generate(ids, sampling, seed, adapter)
        last = done.ids[-1] if done.ended_by == "<eos>" else None
        own_end = last == self.model.tokenizer.eos_token_id
        return {
            "index": 0,
            "text": done.text,
            "finish_reason": done.finish_reason,
            "stop_reason": (None if own_end else last) if done.ended_by == "<eos>" else done.ended_by,
            "token_ids": list(done.ids),
        }, len(done.ids)

    async def _scored(self, body, ids, adapter):
        logp = await self._engine.next_token(ids, adapter)
        off = 0.5 if self.faults.get("other_weights") else 8.0 if self.faults.get("untrained") else 0.0
        allowed = not self.faults.get("no_allowed") and body.get("allowed_token_ids") or range(len(logp))
        greedy = max(allowed, key=logp.__getitem__)
        best = sorted(range(len(logp)), key=logp.__getitem__, reverse=True)
        named = [] if self.faults.get("no_option_ids") else body.get("logprob_token_ids") or []
        shown = [greedy, *(named or best[: body.get("logprobs") or 0])]
        bad = math.nan if self.faulty("nan_logprobs") else -off
        choice = {
            "index": 0,
            "text": self.model.tokenizer.decode([greedy]),
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": [greedy],
        }
        if self.faults.get("no_logprobs"):
            return choice
        if body.get("logprobs") is not None:
            assert body.get("return_tokens_as_token_ids"), "tokens by their texts are ambiguous"
            top = {f"token_id:{i}": logp[i] + bad for i in shown}
            choice["logprobs"] = {"tokens": [f"token_id:{greedy}"], "token_logprobs": [logp[greedy] + bad]}
            choice["logprobs"]["top_logprobs"] = [top]
        if body.get("prompt_logprobs") is not None:
            scores = await self._engine.score(ids, adapter)
            if self.faults.get("flat_logprobs"):
                scores = [score / 2 - 1 for score in scores]
            rows = [{str(i): {"logprob": s + bad}} for i, s in zip(ids[1:], scores, strict=True)]
            choice["prompt_logprobs"] = [None, *rows]
        return choice

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, *about):
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server_of: SandboxServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self._answer({"/health": lambda _: {}, "/v1/models": lambda _: self.server_of.models()}, None)

    def do_POST(self):
        server = self.server_of
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        routes = {"/v1/completions": server.complete, "/tokenize": server.tokenize}
        routes |= {"/v1/load_lora_adapter": server.load_lora}
        routes |= {"/faults": lambda faults: server.heal(**faults) or {}}
        self._answer(routes, body)

    def _answer(self, routes, body):
        server, completion = self.server_of, self.path == "/v1/completions"
        status, dropped = 200, self.path != "/faults" and server.faulty("dead")
        if completion and server.faulty("hang"):
            server.healed.wait()
        if dropped or (completion and server.faulty("drop")):
            self.close_connection = True
            return
        try:
            if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
                raise Refused(401, "Unauthorized")
            if self.path not in routes:
                raise Refused(404, "Not Found")
            if completion and server.faulty("says_key"):
                raise Refused(400, f"not with {self.headers['Authorization']}")
            found = routes[self.path](body)
        except Refused as error:
            status = error.status
            found = {"error": {"message": str(error), "type": "BadRequestError", "code": status}}
        content = json.dumps(found).encode()
        if completion and status == 200 and server.faulty("half_json"):
            content = content[: len(content) // 2]
        if completion and status == 200 and server.faulty("deep_json"):
            content = b"[" * 200_000
        packed = completion and server.faulty("packed")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if packed:
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        endless = completion and status == 200 and server.faulty("endless")
        self.send_header("Content-Length", str(len(content) + endless * 2**40))
        self.end_headers()
        self.wfile.write(content)
        with contextlib.suppress(OSError):
            while endless:
                self.wfile.write(b" " * 100_000)

    def log_message(self, *about):
        pass


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--port", type=int, default=0, help="0: any free one")
    flags.add_argument("--model", default="sandbox")
    flags.add_argument("--lora", action="append", default=[], metavar="NAME=DIR")
    told = "it kills itself (SIGKILL) at so many completions, is there again at once, and so on"
    flags.add_argument("--kill-after", type=int, nargs="+", default=[], metavar="N", help=told)
    flags.add_argument("--fault", action="append", default=[], metavar="NAME[=TIMES]", help=str(FAULTS))
    args = flags.parse_args()

    from cai.models.loader import load
    from cai.models.registry import choose

    model, port = load(choose(args.model)[0]), args.port
    for number in range(len(args.kill_after)):
        if child := os.fork():
            os.waitpid(child, 0)
            continue
        args.kill_after = args.kill_after[number : number + 1]
        break
    else:
        args.kill_after = []
    server = SandboxServer(model, port=port)
    with server:
        for name, _, path in (lora.partition("=") for lora in args.lora):
            server.load_lora({"lora_name": name, "lora_path": path})
        server.heal(**{n: int(t) if t else True for n, _, t in (f.partition("=") for f in args.fault)})
        if args.kill_after:
            server.came = lambda n: n == args.kill_after[0] and os.kill(os.getpid(), signal.SIGKILL)
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
