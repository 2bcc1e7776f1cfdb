"""What `dgmn2 serve` is asked for, and what can be refused before a network is loaded."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.files import absence, read_text

SHORTEST_TOKEN = 16  # characters
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus-client keeps counts, if it is set
_TOKEN_HINT = "Make one with `openssl rand -hex 32 > FILE`."


@dataclass(frozen=True)
class ServeRequest:
    """Who may ask, and what a request may take."""

    # host, port: where to listen; port 0 is any free one
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None  # what a client must send; None: whoever reaches the address may ask
    max_bytes: int = 32_000_000  # of a body
    queue: int = 8  # requests that may wait while another one is computed
    timeout: float = 120.0  # seconds from a request to its answer


def read_token(path: Path) -> str:
    """The token in a file: one line of at least 16 visible ASCII characters.

    Raises:
        ConfigError: there is none in it.
        ResourceError: the file may not be read.
    """
    what = "cannot read the token"
    token = read_text(path, 4096, what, kind=ConfigError, hint=_TOKEN_HINT).strip()
    if len(token) < SHORTEST_TOKEN or not all("!" <= character <= "~" for character in token):
        why = f"wanted one line of {SHORTEST_TOKEN} or more visible ASCII characters, without blanks"
        raise ConfigError(what, where=path, why=why, hint=_TOKEN_HINT)
    return token


def require_metrics_folder() -> None:
    """Raises ConfigError where the environment names a folder for the counts that cannot be written."""
    folder = os.environ.get(METRICS_FOLDER, "")
    if folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        why = "it may not be written" if os.path.isdir(folder) else absence(folder, "folder")
        hint = f"Make the folder, or unset {METRICS_FOLDER}: one server needs none."
        raise ConfigError("no counts can be kept", where=f"{METRICS_FOLDER}={folder}", why=why, hint=hint)


def bind(request: ServeRequest) -> socket.socket:
    """The socket to listen on; nobody can connect yet.

    Raises:
        ConfigError: others than this machine could connect, and there is no token.
        ResourceError: there is no such address here, or another program has the port.
    """
    where, what = f"{request.host}:{request.port}", "cannot listen"
    try:
        family, *_, address = socket.getaddrinfo(request.host, request.port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        hint = "Give an address of this machine with --host."
        raise ResourceError(what, where=where, why=getattr(error, "strerror", "") or str(error), hint=hint) from error
    if request.token is None and not is_loopback(str(address[0])):
        why = "whoever reaches it could use the network"
        raise ConfigError("this address needs a token", where=where, why=why, hint=f"Add --token-file. {_TOKEN_HINT}")
    try:
        return socket.create_server(address, family=family, dualstack_ipv6=family == socket.AF_INET6)
    except OSError as error:
        hint = "Choose another --port, or 0 for any free one."
        raise ResourceError(what, where=where, why=os.strerror(error.errno or 0).lower(), hint=hint) from error


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an IP address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
