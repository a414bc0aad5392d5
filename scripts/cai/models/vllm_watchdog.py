"""Keeps a server as long as somebody owns it: a process of its own between ours and vLLM's.

    python -I vllm_watchdog.py LOCK GRACE_SECONDS END_SECONDS COMMAND...

Who owns the server holds the lock file LOCK, which the kernel lets go of with the process, kill -9 or not.
When nobody has held it for GRACE_SECONDS (time for a rerun to take the server over), when SIGTERM comes, or
when the server itself ends, all processes of the group are ended: vLLM has several, and each may hold GPU
memory. What does not end within END_SECONDS is killed. Standard library only."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

LOOK_SECONDS = 0.5
PR_SET_PDEATHSIG = 1


def owned(lock) -> bool:
    """Whether another process holds the lock; if not, this one does now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def end_with_parent() -> None:
    """In the server, before it begins: should this watchdog be killed, the server is told to end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    path, grace, end, *command = sys.argv[1:]
    grace, end = float(grace), float(end)
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
    alone_since = None
    with open(path, "a") as lock:
        while server.poll() is None and not asked.wait(LOOK_SECONDS):
            if owned(lock):
                alone_since = None
                continue
            alone_since = alone_since or time.monotonic()
            if time.monotonic() - alone_since > grace:
                print(f"nobody has owned this server for {grace:.0f} s: ending it", flush=True)
                break  # with the lock, so that nobody takes over what is about to end
            fcntl.flock(lock, fcntl.LOCK_UN)
        server.terminate()
        try:
            server.wait(end)
        except subprocess.TimeoutExpired:
            pass
        os.killpg(0, signal.SIGKILL)  # this process, too


if __name__ == "__main__":
    main()
