"""Scripts as a person runs them: processes of their own, on the CPU, their files in a test's directory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

from cai.core.files import ROOT


def begin(name, *args, output, **more) -> subprocess.Popen:
    """A script that runs meanwhile; what it prints can be read from the process's stdout."""
    env = os.environ | {"CAI_OUTPUT": str(output), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, args)]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(command, env=env, cwd=ROOT, text=True, **piped)


def script(name, *args, output, **more) -> subprocess.CompletedProcess:
    """A script that has ended; all that it printed."""
    process = begin(name, *args, output=output, **more)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill_at(line, name, *args, output):
    """A script that is killed (SIGKILL) when it has printed a line with this pattern in it."""
    process = begin(name, *args, output=output, stderr=subprocess.DEVNULL)
    assert any(re.search(line, said) for said in process.stdout), f"it ended without a line {line!r}"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
