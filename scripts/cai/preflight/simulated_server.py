"""A server that takes a GPU's time and writes nothing of sense: what keeps it waiting is its client's doing.

Continuous batching as vLLM does it: in each step every running row gets a token; a step takes longer with
more rows and with the prompts that begin in it; a row that ends makes room at once. Times are of a 32B in
FP8 on one A100, reckoned from its bandwidth and arithmetic, not measured. The clock is the wall's, and a step
that began late does not move the next one.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from cai.prompts.markers import CHANGE, CRITIQUE

STEP, A_ROW, A_PROMPT_TOKEN = 0.025, 0.0002, 0.0003  # seconds
MOST_ROWS, MOST_PROMPT_TOKENS = 256, 2048  # of a step
SHORTEST = 0.2  # of max_tokens; a text's length is drawn evenly from there up
LOGPROB = -1.0  # of everything


@dataclass(eq=False)
class Row:
    prompt_tokens: int
    left: int
    done: asyncio.Event = field(default_factory=asyncio.Event)


class SimulatedServer:
    """Serves within `with`, in a thread of its own. rows: of each step, since it began."""

    def __init__(self, name: str, tokenizer: Any, words: list[str]):
        self._name, self._tokenizer, self._words = name, tokenizer, words
        self.url, self.rows = "", []
        self._loop, self._waiting = asyncio.new_event_loop(), deque()
        self._came: asyncio.Event | None = None
        self._ready, self._thread = threading.Event(), threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> SimulatedServer:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def _serve(self) -> None:
        async def main() -> None:
            self._main, self._came = asyncio.current_task(), asyncio.Event()
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self._ready.set()
            await self._steps()

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(main())
            except asyncio.CancelledError:
                pass

    # ---- the batch ----

    async def _steps(self) -> None:
        running: list[Row] = []
        ends = self._loop.time()
        while True:
            if not running and not self._waiting:
                self._came.clear()
                await self._came.wait()
                ends = self._loop.time()
            prompts = 0
            while self._waiting and len(running) < MOST_ROWS and prompts < MOST_PROMPT_TOKENS:
                running.append(self._waiting.popleft())
                prompts += running[-1].prompt_tokens
            self.rows.append(len(running))
            ends += STEP + A_ROW * len(running) + A_PROMPT_TOKEN * prompts
            await asyncio.sleep(ends - self._loop.time())
            for row in running:
                row.left -= 1
                if row.left <= 0:
                    row.done.set()
            running = [row for row in running if row.left > 0]

    async def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        scored = body.get("logprobs") is not None or body.get("prompt_logprobs") is not None
        text = [0] if scored else self._text(ids, body["max_tokens"], body["seed"])
        row = Row(len(ids), len(text))
        self._waiting.append(row)
        self._came.set()
        await row.done.wait()
        choice = {"index": 0, "text": "", "finish_reason": "stop", "stop_reason": None, "token_ids": text}
        if body.get("logprobs") is not None:
            top = {f"token_id:{i}": LOGPROB for i in body["logprob_token_ids"]}
            choice["logprobs"] = {"top_logprobs": [top]}
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = [None, *({str(i): {"logprob": LOGPROB}} for i in ids[1:])]
        return {"choices": [choice]}

    def _text(self, ids: list[int], most: int, seed: int) -> list[int]:
        """Words of a drawn length; a critique asks for a change, so that every example takes all steps."""
        rng = random.Random(f"{seed} {ids}")
        end = self._tokenizer.eos_token_id
        tail = f" {CHANGE}" if self._tokenizer.decode(ids[-6:]).endswith(CRITIQUE) else "."
        tail_ids = self._tokenizer(tail, add_special_tokens=False)["input_ids"]
        wanted = max(1, round(most * rng.uniform(SHORTEST, 1.0)) - len(tail_ids) - 1)
        text = " " + " ".join(rng.choices(self._words, k=wanted))
        return [*self._tokenizer(text, add_special_tokens=False)["input_ids"][:wanted], *tail_ids, end]

    # ---- HTTP ----

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readline():
                path, length = request.split()[1].decode(), 0
                while (line := await reader.readline()).strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                content = json.dumps(await self._answer(path, await reader.readexactly(length))).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
                writer.write(f"{head}\r\n\r\n".encode() + content)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, content: bytes) -> dict[str, Any]:
        body = json.loads(content or b"{}")
        if path == "/v1/completions":
            return await self._complete(body)
        if path == "/v1/models":
            return {"data": [{"id": self._name}]}
        if path == "/tokenize":
            return {"tokens": self._tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        return {}
