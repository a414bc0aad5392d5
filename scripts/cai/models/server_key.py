"""The key of servers: from CAI_API_KEY alone, and in nothing that is printed or written; who needs none."""

from __future__ import annotations

import ipaddress
import os

from cai.core.errors import UserError

KEY = "CAI_API_KEY"  # theirs and their clients', if they want one


def server_key() -> str | None:
    """Without the end of a line, which a file's content brings along. Raises UserError for what no header can
    carry: libraries would say it in their errors."""
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(
            f"{KEY} holds characters that no request can carry (a line's end, or letters beyond ASCII): "
            "set it anew"
        )
    return key or None


def without_key(text: str) -> str:
    """Words of a server, some of which repeat the key that they were asked with."""
    key = os.environ.get(KEY, "").strip()
    return text.replace(key, f"<{KEY}>") if key else text


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own. A name that only looks like one may be anybody's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
