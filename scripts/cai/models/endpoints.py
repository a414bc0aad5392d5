"""The servers of an engine, as one event loop sees them: which of them gets a request, what is tried again,
which of them is left out and when it is taken back.

A server works for one adapter at a time: rows of the base model came out wrong beside rows of an adapter in
one batch (specs/engines.md). So it takes requests of the adapter that it is at, and is drained before it
turns to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from cai.core.errors import RERUN, UserError
from cai.core.text import format_duration, one_line
from cai.models.completions_api import ANSWER_SECONDS, CONNECT_SECONDS, Fault, call
from cai.models.server_key import server_key

MOST_BYTES = 64_000_000  # of an answer: one with all log-probabilities of a full context has 1 MB
ROWS = 128  # requests that a server has at a time: more fill no batch of a 32B better (assumed)
PATIENCE = 8  # times a server's rows that another adapter's request lets pass, before it is drained for it
TRIES = 5  # of one request that servers answer wrongly
DEATHS = 25  # of servers under one request, before it is taken for their cause
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between tries: twice as long each time
GIVE_UP = 600.0  # seconds without any server, before the run ends
NEVER_SEEN = 10.0  # the same, of servers none of which has answered yet

# A proxy that the environment names is for other machines.
NO_PROXY = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))

T = TypeVar("T")


def back_off(tries: int) -> float:
    return min(LONGEST_WAIT, FIRST_WAIT * 2**tries)


@dataclass(eq=False)
class Endpoint:
    """url: without /v1. model: what it calls the base model. adapter: whose requests it is at (None: the
    base's). drains: it takes none until it is empty."""

    url: str
    model: str = ""
    adapter: str | None = None
    flying: int = 0
    live: bool = False
    drains: bool = False


@dataclass(eq=False)
class Ticket:
    """A request that waits for a server. number: in the order in which they came. came: how many had been
    given to one by then."""

    adapter: str | None
    number: int
    came: int
    avoid: Endpoint | None
    given: asyncio.Future[Endpoint] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Checks(Protocol):
    """What servers must show. seen: one of them has been admitted."""

    seen: bool

    async def admit(self, endpoint: Endpoint, client: Any) -> None:
        """Checks a server, unless that is done, and names its model. Raises Fault or UserError."""

    def gone(self, url: str) -> None:
        """What comes back under this URL is checked anew."""


class Endpoints:
    """find: the servers' URLs; it may start one that has stopped, and take its time. rows: requests that each
    has at a time."""

    def __init__(
        self, find: Callable[[], Sequence[str]], checks: Checks, rows: int, log: Callable[[str], None]
    ):
        self._find, self._checks, self._rows, self._log = find, checks, rows, log
        self.loop = asyncio.get_running_loop()
        self.endpoints: list[Endpoint] = []
        self._waiting: dict[str | None, deque[Ticket]] = {}
        self._numbers, self._given = itertools.count(), 0
        self._error: Exception | None = None
        self._alone_since = time.monotonic()
        self._on_their_way: dict[Endpoint, asyncio.Task] = {}
        self._client = self._closing = self._starting = None

    # ---- asking ----

    async def ask(self, adapter: str | None, work: Callable[[Endpoint, Any], Awaitable[T]]) -> T:
        """work on one of the servers, and on another where it comes to a Fault. Raises UserError."""
        self._starting = self._starting or asyncio.ensure_future(self._start())
        await asyncio.shield(self._starting)
        avoid, tries, deaths = None, 0, 0
        while True:
            endpoint = await self._slot(adapter, avoid)
            try:
                return await work(endpoint, self._client)
            except Fault as found:
                avoid, fault = endpoint, found
            finally:
                self._release(endpoint)
            died = fault.down and await self._ailment(endpoint)
            if died or fault.changed:
                self._leave_out(endpoint, str(fault))
            # A server that was killed may be there again before it is asked how it is.
            tries, deaths = (tries, deaths + 1) if died or fault.cut else (tries + 1, deaths)
            if tries >= TRIES or deaths >= DEATHS:
                raise self._useless(endpoint, fault)
            if not died:
                await asyncio.sleep(back_off(max(0, tries - 1)))

    async def _start(self) -> None:
        """Requests go out as soon as one server may work."""
        self._client = client()
        self._closing = _closed_with_the_loop(self._client)
        await anext(self._closing)
        self.endpoints = [Endpoint(url) for url in await in_a_thread(self._find)]
        for endpoint in self.endpoints:
            self._on_their_way[endpoint] = asyncio.ensure_future(self._bring_in(endpoint))

    def _useless(self, endpoint: Endpoint, fault: Fault) -> UserError:
        return UserError(
            f"the server {endpoint.url} gave {fault}, again and again, and none did better: "
            f"see its log, then {RERUN}; what is finished is kept"
        )

    # ---- who gets what ----

    async def _slot(self, adapter: str | None, avoid: Endpoint | None) -> Endpoint:
        if self._error:
            raise self._error
        ticket = Ticket(adapter, next(self._numbers), self._given, avoid)
        self._waiting.setdefault(adapter, deque()).append(ticket)
        self._dispatch()
        try:
            return await ticket.given
        except asyncio.CancelledError:
            if ticket.given.done() and not ticket.given.cancelled() and not ticket.given.exception():
                self._release(ticket.given.result())  # given and cancelled at once
            elif ticket in (group := self._waiting.get(adapter, ())):
                group.remove(ticket)
            raise

    def _release(self, endpoint: Endpoint) -> None:
        endpoint.flying -= 1
        endpoint.drains = endpoint.drains and endpoint.flying > 0
        self._dispatch()

    def _dispatch(self) -> None:
        while found := self._next():
            ticket, endpoint = found
            self._waiting[ticket.adapter].remove(ticket)
            endpoint.adapter, endpoint.flying = ticket.adapter, endpoint.flying + 1
            self._given += 1
            ticket.given.set_result(endpoint)

    def _next(self) -> tuple[Ticket, Endpoint] | None:
        """To the least loaded server that may take one, the oldest request."""
        oldest = sorted((group[0] for group in self._waiting.values() if group), key=lambda t: t.number)
        live = sorted((e for e in self.endpoints if e.live), key=lambda e: e.flying)
        self._drain_for(oldest, live)
        for endpoint in live:
            if endpoint.drains or endpoint.flying >= self._rows:
                continue
            for first in oldest:
                if endpoint.flying and endpoint.adapter != first.adapter:
                    continue
                for ticket in self._waiting[first.adapter]:
                    cancelled = ticket.given.done()
                    if not cancelled and (ticket.avoid is not endpoint or len(live) == 1):
                        return ticket, endpoint
        return None

    def _drain_for(self, oldest: Sequence[Ticket], live: Sequence[Endpoint]) -> None:
        """Nothing waits for ever: once a request has let PATIENCE others pass, and no server is at its
        adapter, one is emptied for it."""
        for ticket in oldest:
            late = self._given - ticket.came > PATIENCE * self._rows
            if late and live and not any(e.adapter == ticket.adapter or e.drains for e in live):
                live[0].drains = live[0].flying > 0

    # ---- who is there ----

    async def _take(self, endpoint: Endpoint) -> None:
        """Raises Fault, where it may still be on its way, or UserError."""
        for tries in range(TRIES):
            try:
                await self._checks.admit(endpoint, self._client)
                break
            except Fault as fault:
                if fault.down or fault.changed:
                    raise
                if tries == TRIES - 1:
                    raise self._useless(endpoint, fault) from None
                await asyncio.sleep(back_off(tries))
        endpoint.live = True
        self._dispatch()

    async def _ailment(self, endpoint: Endpoint) -> str | None:
        """Why a server cannot work now; None where /health answers, or a server lacks that page."""
        try:
            await call(self._client, endpoint.url + "/health", seconds=CONNECT_SECONDS)
        except Fault as fault:
            return str(fault) if fault.down else None
        except UserError:
            pass
        return None

    def _leave_out(self, endpoint: Endpoint, reason: str) -> None:
        """Until it answers again. Of a server's many requests the first that fails says so."""
        if endpoint in self._on_their_way:
            return
        endpoint.live = False
        self._checks.gone(endpoint.url)
        if not any(e.live for e in self.endpoints):
            self._alone_since = time.monotonic()
        self._on_their_way[endpoint] = asyncio.ensure_future(self._bring_in(endpoint, reason))
        self._say_left_out(endpoint, reason)

    def _say_left_out(self, endpoint: Endpoint, reason: str) -> None:
        self._log(f"note: the server {endpoint.url} is left out until it answers ({reason})")

    async def _bring_in(self, endpoint: Endpoint, reason: str = "") -> None:
        """Until it answers, and is what it should be. reason: why it was left out; none at the start."""
        was_there = bool(reason)
        try:
            for tries in itertools.count():
                if reason:
                    await asyncio.sleep(back_off(tries))
                    urls = await in_a_thread(self._find)  # one of ours is started again
                    endpoint.url = urls[self.endpoints.index(endpoint)]
                try:
                    if reason and (ailment := await self._ailment(endpoint)):
                        raise Fault(ailment)
                    await self._take(endpoint)
                    if reason:
                        self._log(f"note: the server {endpoint.url} answers again")
                    return
                except Fault as fault:
                    first, reason = not reason, str(fault)
                if first:
                    self._say_left_out(endpoint, reason)
                self._give_up_after(GIVE_UP if self._checks.seen else NEVER_SEEN, reason)
        except Exception as error:  # it cannot be started, it is another one now, or all have gone
            if isinstance(error, UserError) and was_there and any(e.live for e in self.endpoints):
                self._log(f"note: the server {endpoint.url} stays out: {error}")
            else:
                self._fail(error)
        finally:
            del self._on_their_way[endpoint]

    def _give_up_after(self, patience: float, reason: str) -> None:
        alone = time.monotonic() - self._alone_since
        if alone >= patience and not any(e.live for e in self.endpoints):
            names = ", ".join(e.url for e in self.endpoints)
            raise UserError(
                f"no server has answered for {format_duration(alone)} ({names}: {reason}): start one again, "
                f"then {RERUN}; what is finished is kept"
            )

    def _fail(self, error: Exception) -> None:
        """What waits now, and what is asked later in this loop."""
        self._error = error
        for group in self._waiting.values():
            while group:
                ticket = group.popleft()
                if not ticket.given.done():
                    ticket.given.set_exception(error)


# ---- connections ----


def client(kind: str = "AsyncOpenAI") -> Any:
    """A client of the openai package that does one try, follows nobody elsewhere and takes its key from
    KEY alone. It belongs to one event loop."""
    import httpx2  # openai's own
    import openai

    http = openai.DefaultAsyncHttpxClient if kind == "AsyncOpenAI" else openai.DefaultHttpxClient
    seconds = openai.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=None)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    bound = _bounded_later if kind == "AsyncOpenAI" else _bounded
    return getattr(openai, kind)(
        base_url="http://every.request.names.its.server.invalid",
        api_key=server_key() or "none",
        max_retries=0,
        timeout=seconds,
        http_client=http(
            follow_redirects=False,
            timeout=seconds,
            limits=limits,
            mounts=NO_PROXY,
            event_hooks={"response": [bound]},
        ),
        default_headers={"Accept-Encoding": "identity"},
    )


def _bounded(response: Any) -> None:
    """Nothing that a server sends fills the memory. Packed, a few bytes could be gigabytes."""
    import httpx2

    class Bounded(httpx2.AsyncByteStream, httpx2.SyncByteStream):
        """A body as it comes, until it is longer than an answer can be."""

        def __init__(self, stream: Any):
            self.stream, self.left = stream, MOST_BYTES

        def counted(self, part: bytes) -> bytes:
            self.left -= len(part)
            if self.left < 0:
                raise ValueError(f"an answer of more than {MOST_BYTES:,} bytes")
            return part

        def __iter__(self) -> Iterator[bytes]:
            return map(self.counted, self.stream)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in self.stream:
                yield self.counted(part)

        def close(self) -> None:
            self.stream.close()

        async def aclose(self) -> None:
            await self.stream.aclose()

    packed = response.headers.get("Content-Encoding", "identity")
    if packed != "identity":
        raise ValueError(f"an answer that is packed ({one_line(packed)[:20]}), which nobody asked for")
    response.stream = Bounded(response.stream)


async def _bounded_later(response: Any) -> None:
    _bounded(response)


async def _closed_with_the_loop(client: Any) -> AsyncIterator[None]:
    """Begun once and never finished: when its event loop ends, asyncio closes it, and it the client."""
    try:
        yield
    finally:
        await client.close()


async def in_a_thread(work: Callable[..., T], *args: Any) -> T:
    """What may take minutes, so that Ctrl-C does not wait for it: nothing joins this thread."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_result(result) if error is None else done.set_exception(error)

    def run() -> None:
        try:
            found = work(*args), None
        except Exception as error:
            found = None, error
        with contextlib.suppress(RuntimeError):  # the loop may be gone
            loop.call_soon_threadsafe(settle, *found)

    threading.Thread(target=run, daemon=True).start()
    return await done
