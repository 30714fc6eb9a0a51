"""Hosts as people and browsers write them."""

from __future__ import annotations

import ipaddress
import re
from typing import Optional

LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
PORTS = {"http": 80, "https": 443}  # of origins that name none
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


def host_and_port(text: str) -> Optional[tuple[str, Optional[int]]]:
    """The two parts of "name:port", the host in lower case and without brackets; None if it is neither a name nor an
    address."""
    host, colon, port = text.lower().rpartition(":")
    if not colon or port.endswith("]"):
        host, colon, port = text.lower(), "", ""
    if colon and not _PORT.fullmatch(port):
        return None
    host = host[:-1] if host.endswith(".") else host
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        known = ":" in host and is_address(host)
    else:
        known = bool(_NAME.fullmatch(host))
    return (host, int(port) if colon else None) if known else None


def origin_of(text: str) -> Optional[tuple[str, str, int]]:
    """Scheme, host and port of an Origin header, or of an origin as a person writes it; None if it is none."""
    scheme, _, place = text.lower().partition("://")
    found = host_and_port(place)
    usual = PORTS.get(scheme)
    return None if found is None or usual is None else (scheme, found[0], found[1] or usual)


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    return host.lower() == "localhost" or is_address(host) and ipaddress.ip_address(host).is_loopback
