"""What a user can mend, and what stops a run: errors with a sentence."""

from __future__ import annotations

import errno
import os

from cai.core.text import one_line

RERUN = "rerun the same command"
ELSEWHERE = "set CAI_OUTPUT to a directory that can be written to"


class UserError(Exception):
    """Something that a user can mend: one sentence that says what is wrong and what to do."""


class BudgetReached(Exception):
    """What comes next would pass the budget: a clean stop with an exit status of its own, to resume later."""


def explain_os_error(error: OSError) -> str | None:
    """A sentence for the errors of the operating system that a user can mend, None for the others."""
    file = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    where = f" ({one_line(file)})" if file else ""
    space = "free some space, then rerun the same command; finished rows are kept"
    permission = f"no permission to write or read{where}: change its owner or mode, or {ELSEWHERE}"
    no_locks = f"the file system has no locks{where}: set CAI_OUTPUT to a directory on a local disk"
    too_many = "too many files are open{}: raise the limit (ulimit -n 4096), then rerun the same command"
    away = f"{where}: see that its disk or network volume is mounted and answers, then {RERUN}"
    lost = "or set CAI_OUTPUT to a directory on another disk"
    return {
        errno.ENOSPC: f"the disk is full{where}: {space}",
        errno.EDQUOT: f"the disk quota is used up{where}: {space}",
        errno.EACCES: permission,
        errno.EPERM: permission,
        errno.EEXIST: f"something else is in the way{where}: move it, or {ELSEWHERE}",
        errno.ENOTDIR: f"a file is where a directory should be{where}: move it, or {ELSEWHERE}",
        errno.EISDIR: f"a directory is where a file should be{where}: move it, or {ELSEWHERE}",
        errno.ENAMETOOLONG: f"a name is too long for the file system{where}: choose a shorter one",
        errno.EFBIG: f"the file would be too large for this user{where}: raise ulimit -f, then rerun",
        errno.EROFS: f"the file system is read-only{where}: {ELSEWHERE}",
        errno.ENOENT: f"a file or directory is missing{where}: it was moved or deleted, or its disk is not "
        f"mounted; bring it back, then {RERUN}",
        errno.ELOOP: f"symbolic links lead in a circle{where}: mend them, then {RERUN}",
        errno.EIO: f"the disk cannot be read or written{where}: it may be failing; {RERUN}, {lost}",
        errno.ENOLCK: no_locks,
        errno.ENOSYS: no_locks,
        errno.ENOTSUP: no_locks,
        errno.EMFILE: too_many.format(" in this process"),
        errno.ENFILE: too_many.format(" on this machine"),
        errno.ESTALE: f"the file was replaced or moved on its network disk{away}",
        errno.ETIMEDOUT: f"the network or a network disk does not answer{away}",
        errno.ENOTCONN: f"a network disk has lost its connection{away}",
        errno.ENODEV: f"the disk or device is gone{away}",
        errno.ENXIO: f"the disk or device is gone{away}",
        errno.EAGAIN: "the system has no room for another process, thread or lock: end other programs, or "
        f"raise the limit (ulimit -u), then {RERUN}",
        errno.ENOMEM: f"the machine's memory is used up: end other programs, then {RERUN}",
    }.get(error.errno)
