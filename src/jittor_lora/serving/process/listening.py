"""The socket that the server listens on."""

from __future__ import annotations

import errno
import socket

from jittor_lora.errors import UserError

BACKLOG = 1024


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to the first address of `host`, before anything takes long; `listen` opens it.

    Raises:
        UserError: the host is not one of this machine's, the port is in use or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no such host ({getattr(error, 'strerror', None) or error}). Name an address "
                        "of this machine, such as 127.0.0.1, or 0.0.0.0 for all.") from error
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # :: stands for IPv4's addresses, too
        made.bind(address)
    except OSError as error:
        made.close()
        raise _explained(host, port, error) from error
    return made


def listen(made: socket.socket) -> None:
    """
    Raises:
        UserError: another process began to listen on the port in the meantime.
    """
    try:
        made.listen(BACKLOG)
    except OSError as error:
        host, port = made.getsockname()[:2]
        raise _explained(host, port, error) from error


def url(made: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = made.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _explained(host: str, port: int, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(f"--port {port}: in use by another program, perhaps another server. End it, or give another "
                         "port; --port 0 takes any free one.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError(f"--port {port}: not allowed for this user. Give one from 1024 on; --port 0 takes any free "
                         "one.")
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return UserError(f"--host {host}: not an address of this machine. Give one, such as 127.0.0.1, or 0.0.0.0 for "
                         "all.")
    return UserError(f"--host {host} --port {port}: {error.strerror}.")
