"""Where a server listens: the address, and sockets bound to it.

Plain blocking calls. Knows no server: a port that can't be had is reported before anything else is started.
"""

from __future__ import annotations

import errno
import socket
import ssl
from contextlib import suppress
from ipaddress import ip_address

import msgspec

from streamserve.errors import ConfigError


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """Address, TLS and logging of a server's port.

    shares_port  several processes bind the same port and the kernel spreads the connections over them
    """

    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""
    log_level: str = "info"
    access_log: bool = True
    shares_port: bool = False
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = int(ssl.CERT_NONE)

    @property
    def url(self) -> str:
        """The base URL for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"{'https' if self.ssl_certfile else 'http'}://{host}:{self.port}{self.root_path}"

    @property
    def is_local(self) -> bool:
        """Whether programs of this machine alone can connect."""
        if self.host == "localhost":
            return True
        with suppress(ValueError):
            return ip_address(self.host).is_loopback
        return False


def bind(listen: Listen) -> socket.socket:
    """Bind a socket for `listen`. Raises `ConfigError` when the address can't be had."""
    if listen.shares_port and listen.port:
        # Two servers that share ports would share each other's: only processes of one server may.
        _bound(listen.host, listen.port, shares_port=False).close()
    return _bound(listen.host, listen.port, shares_port=listen.shares_port)


def join(listen: Listen) -> socket.socket:
    """Bind a further socket to a port that this server already shares."""
    return _bound(listen.host, listen.port, shares_port=True)


def _bound(host: str, port: int, *, shares_port: bool) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(_cannot_bind(host, port, error)) from error
    except OverflowError:
        listening.close()
        raise ConfigError(f"--port {port}: must be between 0 and 65535") from None
    listening.setblocking(False)
    return listening


def _cannot_bind(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges this process does not have: choose one above 1023 with --port"
    return f"can't listen on {host}:{port}: {error.strerror or error}; check --host and --port"
