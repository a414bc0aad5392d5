"""The vLLM server that runs on this machine: who owns it, whether it lives, how all of it is ended.

One at a time for a directory of outputs: two on one GPU would both fail. logs/vllm.json says what runs;
the lock logs/.vllm.lock is its owner's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from cai.core.errors import UserError
from cai.core.files import directories, from_json
from cai.core.schema import misfit
from cai.models import vllm_watchdog
from cai.models.server_key import server_key

WATCHDOG = Path(vllm_watchdog.__file__).name
END_SECONDS = 15.0  # that vLLM has to end by itself
PORTS = 100  # that are looked at
STATE_KEYS = {"pid": int, "url": str, "owner": int, "settings": dict, "adapters": {str: str}}
# Without proxies: what is asked is this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def state_file() -> Path:
    return directories("")[2] / "vllm.json"


def lock_file() -> Path:
    return directories("")[2] / ".vllm.lock"


def take_lock() -> TextIO:
    """To own the server. Raises UserError while another process does."""
    lock_file().parent.mkdir(parents=True, exist_ok=True)
    lock = open(lock_file(), "a+", encoding="utf-8")
    for wait in (0.1, 0.4, 1.0, None):  # a watchdog holds it for a moment when it looks
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if wait:
                time.sleep(wait)
    lock.close()
    state = _state()
    where = f" ({state['url']}, process {state['owner']})" if state else ""
    raise UserError(
        f"a vLLM server of another process runs here{where}: "
        f"use it with --engine {state['url'] if state else 'URL'}, wait for that process, "
        "or end its server with python scripts/serve.py --stop"
    )


def running() -> dict[str, Any] | None:
    """What logs/vllm.json says of a server, if its processes are there."""
    state = _state()
    return state if state and is_watchdog(state["pid"]) else None


def _state() -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        state = from_json(state_file().read_text(encoding="utf-8"))
        if misfit(state, STATE_KEYS) is None and state["pid"] > 0:
            return state
    return None


def is_watchdog(pid: int) -> bool:
    """Whether this is the watchdog of a server of these outputs, and not another process that was given its
    number: an editor of its file, a server of other outputs."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError, ValueError):
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        script, lock = process.cmdline()[2:4]
        return Path(script).name == WATCHDOG and os.path.samefile(lock, lock_file())
    return False


def end_leftovers() -> str | None:
    """Ends what a watchdog that was killed has left of its server: all of its group that writes into our
    logs. The server's URL, None where there is nothing. Call it where nobody owns the server."""
    state = _state()
    if state is None or is_watchdog(state["pid"]) or not any(map(_writes_here, _members(state["pid"]))):
        return None
    end(state["pid"])
    return state["url"]


def _writes_here(pid: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        files = [Path(file.path) for file in psutil.Process(pid).open_files()]
        return any(f.match("vllm-*.log") and os.path.samefile(f.parent, lock_file().parent) for f in files)
    return False


def _members(group: int) -> Iterator[int]:
    """The processes of a group that still hold memory: a dead one does, while threads of it live."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group:
                if process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1:
                    yield process.pid


def end(pid: int, child: subprocess.Popen | None = None) -> None:
    """Ends a watchdog and everything of its group: asked to first, then killed. child: it, if it is ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    while any(_members(pid)):
        if not is_watchdog(pid) or time.monotonic() - began > 2 * END_SECONDS:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.1)
    if child:
        child.wait()


def stop_running() -> str | None:
    """Ends the server that runs here, whoever owns it; its URL, None if there is none."""
    state = running()
    if state is None:
        return end_leftovers()
    state_file().unlink(missing_ok=True)  # its owner sees by it that this was asked for
    end(state["pid"])
    return state["url"]


def free_port(asked: int | None, host: str, first: int) -> int:
    """Raises UserError where the port that was asked for, or every one from the first on, is in use."""
    for port in [asked] if asked else range(first, first + PORTS):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    which = f"--port {asked} is" if asked else f"all ports from {first} to {first + PORTS - 1} are"
    raise UserError(f"{which} in use on {host}: give another --port, or end what listens there")


def listens(group: int, url: str) -> bool:
    """Whether it is this group that answers at a URL, and not another server that was quicker to take it."""
    import psutil

    port = int(url.rpartition(":")[2])
    for pid in _members(group):
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(pid).net_connections("tcp")
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in found):
                return True
    return False


def healthy(url: str) -> bool:
    try:
        with _OPENER.open(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


def ask(url: str, body: dict[str, Any] | None = None) -> str:
    """A GET, with a body a POST; the answer's text. Raises OSError, urllib's HTTPError among them."""
    headers = {"Content-Type": "application/json"}
    if key := server_key():
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    with _OPENER.open(urllib.request.Request(url, data, headers), timeout=120) as answer:
        return answer.read().decode("utf-8", "replace")
