"""The terminal: what is said there commands nothing, and a terminal that fails stops no run.

`guard` stands before everything that a script prints, its libraries' warnings, progress bars and tracebacks
included. A run's work matters more than its print: where the terminal is gone, its copy is lost, and
logs/<run>.log has everything.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

from cai.core.text import printable

# What comes to a stream that comes to nobody any more: a pipe without a reader (| head), a terminal that was
# closed, one whose process has no stream at all (>&-).
GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ENODEV, errno.ESTALE)
BAR = re.compile("(?:\r|\x1b\\[A)*")  # how a progress bar (tqdm's) begins what it writes


class Terminal:
    """A text stream over another one that writes what its encoding can show, and never fails."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        moves = BAR.match(text)[0]
        shown = moves + printable(text[len(moves) :], self._stream.encoding)
        self._try(self._stream.write, shown)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[..., Any], *args: str) -> None:
        try:
            act(*args)
        except OSError as error:  # any other than GONE may pass: a full disk, a reader that does not keep up
            if error.errno in GONE:
                self._let_go()
        except ValueError:  # closed
            pass

    def _let_go(self) -> None:
        """Everything that still writes there (the stream's own buffer, libraries in C, children, whom a pipe
        without a reader would kill) writes to nothing from now on."""
        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
        except (OSError, ValueError):
            pass


def guard() -> None:
    """Puts a Terminal before both streams of this process. A stream that is closed becomes one to nothing:
    its number would be given to the next file that is opened, and what libraries print would end up there."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Terminal):
            setattr(sys, name, Terminal(open(os.devnull, "w") if stream is None else stream))


def say(text: str = "", *, error: bool = False) -> None:
    """To the terminal, whoever runs this and guarded or not."""
    stream = sys.stderr if error else sys.stdout
    if stream is not None:
        print(printable(text, stream.encoding), file=Terminal(stream), flush=True)
