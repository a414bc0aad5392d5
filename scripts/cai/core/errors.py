"""What a user can mend, and what stops a run: errors with a sentence."""

from __future__ import annotations

import errno


class UserError(Exception):
    """Something that a user can mend: one sentence that says what is wrong and what to do."""


class BudgetReached(Exception):
    """What comes next would pass the budget: a clean stop with an exit status of its own, to resume later."""


def explain_os_error(error: OSError) -> str | None:
    """A sentence for the errors of the operating system that a user can mend, None for the others."""
    where = f" ({error.filename})" if error.filename else ""
    space = "free some space, then rerun the same command; finished rows are kept"
    permission = f"no permission to write or read{where}: change its owner or mode, or use another checkout"
    return {
        errno.ENOSPC: f"the disk is full{where}: {space}",
        errno.EDQUOT: f"the disk quota is used up{where}: {space}",
        errno.EACCES: permission,
        errno.EPERM: permission,
        errno.EEXIST: f"something else is in the way{where}: move it, or run in another checkout",
        errno.ENOTDIR: f"a file is where a directory should be{where}: move it, or run in another checkout",
        errno.EISDIR: f"a directory is where a file should be{where}: move it, or run in another checkout",
        errno.ENAMETOOLONG: f"a name is too long for the file system{where}: choose a shorter one",
        errno.EFBIG: f"the file would be too large for this user{where}: raise ulimit -f, then rerun",
        errno.EROFS: f"the file system is read-only{where}: run in a checkout that can be written to",
    }.get(error.errno)
