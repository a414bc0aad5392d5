"""A vLLM server that this process owns: started when it is first needed, its GPU memory given back by stop().

A server whose owner was killed is taken over by a rerun that needs the same; another is ended before one
starts, and one that nobody takes over ends by itself (models/vllm_watchdog.py)."""

from __future__ import annotations

import atexit
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from cai.core.errors import UserError
from cai.core.files import ROOT, directories, display_path, write_json
from cai.core.text import format_duration, one_line
from cai.models import vllm_watchdog
from cai.models.device import CUDA, DRIVER, GB, Gpu, cache_dir, cuda_major, same_disk, visible_gpus
from cai.models.fit import disk_fit
from cai.models.loader import fetch
from cai.models.model import lora_of
from cai.models.registry import ModelSpec
from cai.models.server_key import KEY, is_loopback, server_key, without_key
from cai.models.vllm_environment import (
    ENVIRONMENT_GB,
    OWN,
    SAY_SECONDS,
    ensure_environment,
    environment,
    environment_ready,
    last_line,
    tail,
)
from cai.models.vllm_process import (
    END_SECONDS,
    ask,
    end,
    end_leftovers,
    free_port,
    healthy,
    is_watchdog,
    listens,
    running,
    state_file,
    take_lock,
)
from cai.models.vllm_settings import (
    check_deterministic,
    child_environment,
    command,
    lora_rank,
    serving_bits,
    serving_precision,
    write_stops,
)

__all__ = [
    "ENVIRONMENT_GB",
    "START_SECONDS",
    "VllmServer",
    "environment_ready",
    "serving_bits",
]

# The 32B's: 65 GB read, quantised, compiled, CUDA graphs. Assumed until it was measured.
START_SECONDS = 240.0
SMALL_START_SECONDS = 60.0  # a small model's: most of it is imports
MOST_SECONDS = 1800.0  # a start that takes longer has failed
ORPHAN_SECONDS = 120.0  # that a server outlives an owner that was killed: time for a rerun to take it over
MOST_DEATHS = 5  # of one run's servers, after which the run ends
LOOK_SECONDS = 0.5
FIRST_PORT, PORTS_TO_TRY = 8000, 3  # others may take one between our look and vLLM's
IN_USE = "Address already in use"


def gpu_to_serve_on() -> Gpu | None:
    """The GPU that vLLM takes: the first that this process may use. None on a CPU, with an environment made
    for it. Raises UserError for a CPU without."""
    gpus = visible_gpus()
    if not gpus and not os.environ.get(OWN, "").strip():
        raise UserError(
            "vLLM needs a CUDA GPU, and there is none here: use --engine local "
            "(vLLM's unofficial CPU build is for tests alone: bash tests/vllm.sh)"
        )
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    number = int(first) if first.isdecimal() else 0
    return gpus[number if number < len(gpus) else 0] if gpus else None


def precision_of(bits: int) -> str:
    """What a server here computes in, in words."""
    return serving_precision(bits, gpu_to_serve_on())


class VllmServer:
    """See models.server_engine.Servers. port: the first free one from 8000 on, if none is given.
    revision: of the weights, once it runs."""

    name, number = "vllm", 1

    def __init__(
        self,
        spec: ModelSpec,
        bits: int,
        *,
        beside_gb: float = 0.0,
        deterministic: bool = False,
        log: Callable[[str], None] = print,
        port: int | None = None,
        host: str = "127.0.0.1",
    ):
        """Raises UserError for what cannot be served here; whether the memory suffices shows at the start."""
        gpu = gpu_to_serve_on()
        if gpu is not None and cuda_major() < CUDA:
            raise UserError(
                f"vLLM needs CUDA {CUDA} (driver {DRIVER} or newer), this machine has driver {gpu.driver}: "
                "use --engine local, or rent a machine with a newer driver"
            )
        if gpu is None and bits != 16:
            raise UserError(f"{bits} bits: vLLM's CPU build serves 16-bit weights alone; use 16 bits")
        if not server_key() and not is_loopback(host):
            raise UserError(
                f"--host {host}: others could use this server: "
                f"set {KEY} to a key of your choice first, for it and for its clients"
            )
        if deterministic:
            check_deterministic(bits, gpu)
        self.spec, self.bits, self.beside_gb, self.deterministic = spec, bits, beside_gb, deterministic
        self.url, self.revision = "", None
        self._asked_port, self._host, self._log = port, host, log
        self._adapters: dict[str, Path] = {}
        self._rank = lora_rank([spec.lora_r])
        self._lock: TextIO | None = None
        self._process: subprocess.Popen | None = None  # the watchdog, if it is our child
        self._pid = 0  # its number, and its group's
        self._deaths = 0
        self._launching = threading.Lock()
        self._wanted, self._over = False, False

    # ---- models.server_engine.Servers ----

    def urls(self) -> Sequence[str]:
        """Starts the server if it does not run. Raises UserError: no environment, disk, memory or port; a
        server that ends, with its log's tail."""
        if self._over:
            raise UserError("this run is ending: no server is started any more")
        if not self.runs():
            if self._pid:
                self._ended_by_itself()
            self.stop()
            self._wanted = True
            try:
                self._start()
            except BaseException:
                self.stop()
                raise
        return [self.url]

    def load_adapter(self, path: Path, served: str) -> None:
        path = Path(os.path.abspath(path))
        rank, before = lora_rank([self._rank, lora_of(path)[0]]), self._rank
        known = self._adapters.get(served) == path
        self._adapters[served], self._rank = path, rank
        if known or not self.runs():
            return
        if rank > before:  # what the server reserved is too small
            self._log(f"restarting vLLM: the adapter {display_path(path)} has LoRA rank {rank}")
            self.stop()
            self.urls()
        else:
            try:
                self._load(served, path)
            except UserError:
                del self._adapters[served]
                raise

    def stop(self) -> None:
        """Ends all of the server's processes: the GPU's memory is free again when this returns. What another
        thread is starting, too."""
        with self._launching:
            self._wanted = False
            lock, process, pid = self._lock, self._process, self._pid
            self._lock, self._process, self._pid = None, None, 0
        if lock is None:
            return
        if pid:
            end(pid, process)
            state_file().unlink(missing_ok=True)
        lock.close()
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        self._over = True
        self.stop()

    def runs(self) -> bool:
        process, pid = self._process, self._pid
        return process.poll() is None if process else pid != 0 and is_watchdog(pid)

    def is_recorded(self) -> bool:
        """Whether logs/vllm.json still speaks of it: serve.py --stop takes that away first."""
        return state_file().exists()

    @property
    def log_file(self) -> Path:
        return directories("")[2] / f"vllm-{self.url.rpartition(':')[2]}.log"

    # ---- how it is started ----

    def _start(self) -> None:
        self._lock = take_lock()
        atexit.register(self._at_exit)
        found = running()
        if found is None:
            if url := end_leftovers():
                self._log(f"ended what a vLLM server whose watchdog was killed has left: {url}")
            self._check_memory()
        self._check_disk()
        python = ensure_environment(self._log)
        weights, self.revision = fetch(self.spec, self.bits)
        if found and self._settings() == found["settings"] and healthy(found["url"]):
            self._take_over(found)
            return
        if found:
            self._log(f"ending the vLLM server that a run with other settings has left: {found['url']}")
            end(found["pid"])
            self._check_memory()
        for first in range(FIRST_PORT, FIRST_PORT + PORTS_TO_TRY):
            self.url = self._url(free_port(self._asked_port, self._host, first))
            self._log(
                f"starting vLLM: {self.spec.name}, {precision_of(self.bits)}, {self.url}; expected to take "
                f"{format_duration(self._expected)} (assumed); log: {display_path(self.log_file)}"
            )
            self._launch(python, weights)
            if self._is_ready():
                return
        raise self._failed(f"{PORTS_TO_TRY} ports were taken one after the other")

    @property
    def _expected(self) -> float:
        return START_SECONDS if self.spec.parameters > 1 else SMALL_START_SECONDS

    def _url(self, port: int) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def _check_memory(self) -> None:
        if gpu := gpu_to_serve_on():
            serving_bits(self.spec, self.bits, gpu.free / GB, beside_gb=self._still_left())

    def _check_disk(self) -> None:
        """Before 14 GB are installed on the disk that the weights then lack."""
        repo, _ = self.spec.source(self.bits)
        if environment_ready() or (ROOT / repo).is_dir() or not same_disk(cache_dir(), environment()):
            return  # what is left is checked where it is fetched, or installed
        fit = disk_fit(self.spec, self.bits)
        if fit.need + ENVIRONMENT_GB > fit.free:
            raise UserError(
                f"vLLM's weights ({fit.need:.0f} GB) and environment ({ENVIRONMENT_GB:.0f} GB) "
                f"need more disk than the {fit.free:.0f} GB that are free at {cache_dir()}: "
                "free some space, set HF_HOME to another disk, or use --engine local"
            )

    def _still_left(self) -> float:
        """Of the memory that is left to another model, what that has not taken yet: it is loaded here once
        the server runs, and is there when one that has ended is started again."""
        torch = sys.modules.get("torch")
        taken = torch.cuda.memory_reserved() / GB if torch and torch.cuda.is_initialized() else 0.0
        return max(0.0, self.beside_gb - taken)

    def _settings(self) -> dict[str, Any]:
        """What a server must have in common with ours for us to use it."""
        return {
            **{"model": self.spec.name, "revision": self.revision, "bits": self.bits, "rank": self._rank},
            **{"context": self.spec.max_seq_length, "deterministic": self.deterministic, "host": self._host},
            **{"beside_gb": self.beside_gb},
        }

    def _launch(self, python: Path, weights: Path) -> None:
        gpu, logs = gpu_to_serve_on(), directories("")[2]
        served = command(
            python,
            self.spec,
            weights,
            self.bits,
            gpu=gpu,
            beside_gb=self._still_left(),
            host=self._host,
            port=int(self.url.rpartition(":")[2]),
            rank=self._rank,
            adapters=self._adapters,
            stops=write_stops(weights, self.spec, logs / "vllm-generation"),
            deterministic=self.deterministic,
        )
        with self._launching, open(self.log_file, "wb") as out:
            if not self._wanted:  # stop() came meanwhile, from another thread
                raise UserError("the start of vLLM was broken off")
            watch = [sys.executable, "-I", vllm_watchdog.__file__, self._lock.name]
            watch += [str(ORPHAN_SECONDS), str(END_SECONDS)]
            self._process = subprocess.Popen(
                [*watch, *served],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=child_environment(gpu=gpu, host=self._host, deterministic=self.deterministic),
                cwd=logs,
                start_new_session=True,  # Ctrl-C is for us; and one group to end
            )
            self._pid = self._process.pid
        self._write_state()

    def _write_state(self) -> None:
        facts = {"pid": self._pid, "url": self.url, "owner": os.getpid(), "settings": self._settings()}
        facts |= {"adapters": {name: str(path) for name, path in self._adapters.items()}}
        write_json(state_file(), facts | {"written": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def _is_ready(self) -> bool:
        """Waits for it; False where another server took the port meanwhile. Raises UserError."""
        began = spoken = time.monotonic()
        while not (healthy(self.url) and listens(self._pid, self.url)):
            seconds = time.monotonic() - began
            if not self._wanted:
                raise UserError("the start of vLLM was broken off")
            if not self.runs():
                if IN_USE in self._last_words() and not self._asked_port:
                    end(self._pid, self._process)
                    return False
                raise self._failed("vLLM ended before it was ready")
            if seconds > MOST_SECONDS:
                raise self._failed(f"vLLM was not ready after {format_duration(seconds)}")
            if time.monotonic() - spoken > SAY_SECONDS:
                spoken = time.monotonic()
                self._log(f"  vLLM, {format_duration(seconds)}: {last_line(self.log_file)}")
            time.sleep(LOOK_SECONDS)
        self._log(f"vLLM is ready after {format_duration(time.monotonic() - began)}")
        return True

    def _ended_by_itself(self) -> None:
        """Once may be chance, or somebody's kill; often is a defect that a new start would not mend."""
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise self._failed(f"vLLM has ended by itself {self._deaths} times")
        self._log(f"vLLM has ended by itself ({self._last_words()}): starting it again")

    def _failed(self, what: str) -> UserError:
        """With the log's reason in one sentence; its tail is said before."""
        for line in tail(self.log_file, 12):
            self._log(f"  | {line[:200]}")
        return UserError(
            f"{what} ({self._last_words()}): see {display_path(self.log_file)}, or use --engine local"
        )

    def _last_words(self) -> str:
        lines = tail(self.log_file, 400)
        reasons = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b: ", line)]
        said = (reasons or lines or ["it said nothing"])[-1]
        return re.sub(r"^\(\w+ pid=\d+\) (\w+ [\d-]+ [\d:]+ \[[\w.]+:\d+\] )?", "", said)[:300]

    def _take_over(self, found: dict[str, Any]) -> None:
        self._pid, self.url = found["pid"], found["url"]
        self._log(f"using the vLLM server that a killed run has left: {self.url}")
        wanted, self._adapters = self._adapters, {n: Path(path) for n, path in found["adapters"].items()}
        self._write_state()
        for served, path in wanted.items():
            self.load_adapter(path, served)

    def _load(self, served: str, path: Path) -> None:
        try:
            ask(f"{self.url}/v1/load_lora_adapter", {"lora_name": served, "lora_path": str(path)})
        except urllib.error.HTTPError as error:
            said = without_key(one_line(error.read().decode("utf-8", "replace")))[:300]
            raise UserError(
                f"vLLM does not take the adapter {display_path(path)} ({said}): "
                "train it again, or use --engine local"
            ) from None
        except OSError as error:
            raise UserError(
                f"vLLM at {self.url} does not answer ({one_line(error)}): see {display_path(self.log_file)}, "
                "then rerun the same command"
            ) from None
        self._write_state()
