"""Who may use the server.

A server on loopback is still reachable from every page in the user's browser. Two things keep
pages out: requests must name a host of ours (DNS rebinding makes a foreign name point here), and
nothing is readable across origins unless CORS is turned on.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping

from pyds4_server.errors import AuthenticationError, HostError

_LOOPBACK_NAMES = ("localhost", "ip6-localhost")


def is_loopback(host: str) -> bool:
    """Whether a name or address stays on this machine."""
    if host in _LOOPBACK_NAMES or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The host of a Host header, lower case, without port and brackets."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].rstrip(".")


class HostCheck:
    """Accepts loopback names, the bound address, and what the settings add."""

    def __init__(self, bound: str, allowed: Iterable[str]) -> None:
        self._allowed = {host.lower() for host in allowed}
        self._allowed.add(bound.lower())

    def check(self, header: str | None) -> None:
        """Refuse a foreign Host.

        Raises:
            HostError: the header names another machine, or there is none.
        """
        host = host_of(header or "")
        if "*" in self._allowed or host in self._allowed or is_loopback(host):
            return
        raise HostError(
            f"The Host header {header!r} is not one of this server's names. "
            "Add it with --allowed-hosts if it should be."
        )


class KeyCheck:
    """Compares API keys in constant time; only their hashes are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    @property
    def is_open(self) -> bool:
        """Whether no key is asked."""
        return not self._hashes

    def check(self, headers: Mapping[str, str]) -> None:
        """Accept ``Authorization: Bearer KEY`` or ``x-api-key: KEY``.

        Raises:
            AuthenticationError: no key, or one we do not know.
        """
        if self.is_open:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        sent = [headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            sent.append(bearer.strip())
        accepted = False
        for key in sent:
            hashed = _hash(key)
            for known in self._hashes:
                accepted |= hmac.compare_digest(hashed, known)
        if not accepted:
            raise AuthenticationError(
                "Incorrect API key provided." if any(sent) else "An API key is required."
            )


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
