"""Chooses TCP ports on loopback: the configured one, the one used last time, or a free one."""

from __future__ import annotations

import secrets
import socket

from ledger.errors import StackError
from ledger.stack.process import wait_until

LOOPBACK = "127.0.0.1"
# Below the range that systems hand out to outgoing connections, so that a port chosen today is
# still free after the next 'ledger down'.
LOWEST = 20_000
HIGHEST = 31_999
_LET_GO_S = 3.0


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Return whether something accepts connections on this port of the loopback address."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


class Ports:
    """Hands out ports for one start of the stack, none of them twice."""

    def __init__(self, reserved: set[int]) -> None:
        """Keep the reserved ports, which settings ask for, from being chosen as free ones."""
        self._reserved = reserved
        self._taken: set[int] = set()

    def configured(self, port: int, setting: str, server: str) -> int:
        """Return the port that a setting asks for.

        Raises:
            StackError: something else holds it; names the port and the setting.
        """
        if port in self._taken or not is_free(port):
            raise StackError(
                f"{server}: port {port} on {LOOPBACK}, set by {setting}, is taken by another "
                f"process; free it, set another port, or unset {setting} to have one chosen."
            )
        self._taken.add(port)
        return port

    def free(self, last_time: int | None) -> int:
        """Return the port of last time if it is still free, else another.

        Raises:
            StackError: none of a hundred ports tried is free.
        """
        candidates = []
        if last_time is not None:
            candidates.append(last_time)
            # A server that was just killed lets go of its sockets only when its last thread ended.
            wait_until(lambda: is_free(last_time), _LET_GO_S)
        candidates += [LOWEST + secrets.randbelow(HIGHEST - LOWEST + 1) for _ in range(100)]
        for port in candidates:
            if port not in self._taken | self._reserved and is_free(port):
                self._taken.add(port)
                return port
        raise StackError(f"No free port between {LOWEST} and {HIGHEST} on {LOOPBACK}.")

    def choose(self, wanted: int | None, setting: str, server: str, last_time: int | None) -> int:
        """Return `configured` if the setting has a value, else `free`."""
        if wanted is not None:
            return self.configured(wanted, setting, server)
        return self.free(last_time)
