"""M2 from outside: two processes on one run; killed with SIGKILL at random moments of its whole life."""

import contextlib
import json
import math
import os
import random
import re
import signal
import subprocess
import time

import pytest
from cai.core.jsonl import read
from cai.training import callbacks
from processes import begin
from rows import alike, assert_same_rows


def start(output, *args, **more):
    return begin("generate_mvp.py", "--model", "sandbox", "--force", *args, output=output, **more)


def test_two_processes_on_one_run_of_m2(tmp_path):
    for _ in range(2):  # the second time after a kill -9, with nothing cleaned up
        first = start(tmp_path, "--limit", "12")
        assert first.stdout.readline().startswith("model:")
        second = start(tmp_path, "--limit", "12")
        out, err = second.communicate()
        assert second.returncode == 2 and f"pid {first.pid}" in err and out == "" and first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.communicate()


MILESTONE = ("--limit", "24", "--steps", "6")


class Watched:
    """A process of M2, seen from outside: what it has said, what has changed on the disk since it began."""

    def __init__(self, output):
        self.output, self.said = output, output / "said.txt"
        output.mkdir(exist_ok=True)
        self.before = self.files()
        with open(self.said, "w") as out:
            self.process = start(output, *MILESTONE, stdout=out, stderr=subprocess.STDOUT)

    def files(self) -> dict[str, int]:
        """path -> when it changed; what vanishes meanwhile is left out."""
        found = {}
        for directory, _, names in os.walk(self.output):
            for path in (os.path.join(directory, name) for name in (".", *names)):
                with contextlib.suppress(FileNotFoundError):
                    found[os.path.relpath(path, self.output)] = os.stat(path).st_mtime_ns
        return found

    def until(self, marks, seconds: float = math.inf) -> bool:
        """Waits for one of the marks, the process's end, or so long; whether it was a mark. A mark is how a
        line begins, or "changed: " and a pattern of paths."""
        paths = [re.compile(m.removeprefix("changed: ")) for m in marks if m.startswith("changed: ")]
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.ended_within(0.05):
            said = "\n" + self.said.read_text()
            changed = [n for n, t in self.files().items() if self.before.get(n) != t]
            if any(f"\n{m}" in said for m in marks) or any(p.match(n) for n in changed for p in paths):
                return True
        return False

    def ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            return True
        return False


MARKS = (  # in the order in which a run comes by
    "model:",
    "run:",
    "changed: data/mvp/instructions.jsonl",
    "changed: data/mvp/records.jsonl",
    "[2]",
    "changed: data/mvp/pairs.jsonl",
    "changed: checkpoints/mvp/training.jsonl",
    "changed: checkpoints/mvp/steps/checkpoint-[1-9].*/complete.json",
    "changed: checkpoints/mvp(.part)?/(adapter_model.safetensors|training.json)$",
    "changed: data/mvp/evaluation/critique",
    "changed: data/mvp/evaluation/preference",
    "changed: data/mvp/evaluation/forgetting",
    "Gate",
)
AGAIN = (
    "changed: data/mvp/records.jsonl",
    "changed: checkpoints/mvp/training.jsonl",
)  # a little further each time


@pytest.fixture
def watched():
    made = []
    yield lambda output: made.append(Watched(output)) or made[-1]
    for each in made:
        each.process.kill()
        each.process.wait()


@pytest.mark.slow
def test_m2_killed_at_random_moments_of_its_whole_life(tmp_path, watched):
    """Each moment is a mark that the process comes by, and then a random part of the time from there to the
    next one, as long as an undisturbed run took it on this machine."""
    undisturbed, times = watched(tmp_path / "whole"), []
    for number in range(len(MARKS)):
        assert undisturbed.until(MARKS[number:]), undisturbed.said.read_text()[-2000:]
        times.append(time.monotonic())
    status = undisturbed.process.wait()
    gaps = [b - a for a, b in zip(times, [*times[1:], time.monotonic()], strict=True)]
    rng, kills = random.Random(0), 0
    for number in sorted([*range(len(MARKS)), *map(MARKS.index, AGAIN)]):
        some = watched(tmp_path / "killed")
        if some.until(MARKS[number:]):
            some.until(MARKS[number + 1 :], rng.random() * gaps[number])
            some.process.kill()
        kills += some.process.wait() == -signal.SIGKILL
    assert kills >= 12
    last = watched(tmp_path / "killed")
    assert last.process.wait() == status in (0, 3, 5), last.said.read_text()[-2000:]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert_same_rows(killed / "data/mvp", whole / "data/mvp")
    weights = [o / "checkpoints/mvp/adapter_model.safetensors" for o in (killed, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    logs = [read(o / "checkpoints/mvp/training.jsonl", callbacks.LOG_KEYS) for o in (killed, whole)]
    assert logs[0] == logs[1]
    for path in sorted((whole / "data/mvp/evaluation").glob("*.jsonl")):
        rows, expected = (read(o / "data/mvp/evaluation" / path.name, {"id": str}) for o in (killed, whole))
        assert len({r["id"] for r in rows}) == len(rows) == len(expected), path.name
        assert alike({r["id"]: r for r in rows}, {r["id"]: r for r in expected}), path.name
    manifests = [json.loads((o / "data/mvp/run.json").read_text()) for o in (killed, whole)]
    for manifest in manifests:
        for criterion in manifest["gate"]["criteria"]:
            del criterion["look_at"]  # a path
    for key in ("instructions", "counts", "pairs", "adapter", "training", "gate"):
        assert alike(manifests[0][key], manifests[1][key]), key
    assert not [p for p in killed.rglob("*") if p.name.endswith(".part")]
    assert {p.name for p in (killed / "checkpoints/mvp").iterdir()} == {
        p.name for p in (whole / "checkpoints/mvp").iterdir()
    }
