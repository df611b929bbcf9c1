"""All processes meet at process 0's address before jax starts: it would not say who is missing."""

import contextlib
import json
import socket
import time

from jaxformer.errors import UserError
from jaxformer.reading import read_json

RETRY_SECONDS = 0.2


def meet(coordinator: str, count: int, index: int, seconds: float) -> list[str]:
    """The host names of all processes, once they are all there.

    Each process sends process 0 a line `[index, host]`, and gets a line `{"hosts": [...]}` or
    `{"error": ...}`. The port is free again afterwards, for jax.

    Raises:
        UserError: in every process, if one does not come in time, comes twice or cannot listen.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    if index == 0:
        return _receive(coordinator, int(port), count, deadline, seconds)
    while time.monotonic() < deadline:
        try:
            answer = _ask(host.strip("[]"), int(port), index, deadline)
        except (OSError, ValueError):  # nobody there yet, or an earlier run that is just ending
            time.sleep(RETRY_SECONDS)
            continue
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["hosts"]
    raise UserError(
        f"process 0 has not come to {coordinator} within {seconds:g} s; start it there, or fix "
        f"--coordinator"
    )


def _ask(host: str, port: int, index: int, deadline: float) -> dict:
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.settimeout(max(0.0, deadline - time.monotonic()) + 5)
        connection.sendall(json.dumps([index, socket.gethostname()]).encode() + b"\n")
        with connection.makefile("r", encoding="utf-8") as lines:
            return json.loads(lines.readline())


def _receive(coordinator: str, port: int, count: int, deadline: float, seconds: float) -> list[str]:
    hosts, error = {0: socket.gethostname()}, ""
    waiting: list[socket.socket] = []
    with _listen(coordinator, port) as server:
        while len(hosts) < count and not error:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                waiting.append(server.accept()[0])
            except TimeoutError:
                missing = ", ".join(str(i) for i in range(count) if i not in hosts)
                error = (
                    f"of {count} processes, these have not come to {coordinator} within "
                    f"{seconds:g} s: {missing}; start one with each number"
                )
                break
            try:
                index, host = _hello(waiting[-1])
            except (OSError, ValueError, TypeError, UserError):  # not a process of a run
                continue
            if index in hosts or not 0 < index < count:
                error = (
                    f"process {index} of {count} came from {host}, but "
                    f"{hosts.get(index, 'nowhere')} is where that number is; give each process its "
                    f"own, from 0 to {count - 1}"
                )
            hosts[index] = host
    names = [hosts[i] for i in sorted(hosts)]
    for connection in waiting:
        answer = {"error": error} if error else {"hosts": names}
        with contextlib.suppress(OSError), connection:
            connection.sendall(json.dumps(answer).encode() + b"\n")
    if error:
        raise UserError(error)
    return names


def _listen(coordinator: str, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as reason:
        raise UserError(
            f"process 0 cannot listen at {coordinator}: {reason.strerror}; end what listens "
            f"there, or give another port"
        ) from None


def _hello(connection: socket.socket) -> tuple[int, str]:
    connection.settimeout(5)
    with connection.makefile("r", encoding="utf-8") as lines:
        index, host = read_json(lines.readline(), "the greeting")
    return int(index), str(host)
