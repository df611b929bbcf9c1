import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxformer.errors import UserError
from jaxformer.parallel.rendezvous import meet


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def meet_all(indices: list[int], count: int, seconds: float) -> list:
    """What each process got: the hosts, or the message of its error."""
    coordinator = f"127.0.0.1:{free_port()}"

    def one(index: int):
        try:
            return meet(coordinator, count, index, seconds)
        except UserError as error:
            return str(error).replace(coordinator, "HERE")

    with ThreadPoolExecutor(len(indices)) as threads:
        return list(threads.map(one, indices))


def test_all_processes_learn_the_names_of_all_hosts():
    here = socket.gethostname()
    assert meet_all([2, 1, 0], 3, seconds=20) == [[here] * 3] * 3


def test_those_that_do_not_come_are_named_in_every_process():
    message = (
        "of 4 processes, these have not come to HERE within 0.5 s: 1, 3; start one with each number"
    )
    assert meet_all([0, 2], 4, seconds=0.5) == [message, message]


def test_a_process_without_process_0_says_so():
    message = "process 0 has not come to HERE within 0.3 s; start it there, or fix --coordinator"
    assert meet_all([1], 2, seconds=0.3) == [message]


def test_a_number_given_twice_is_refused_in_every_process():
    here = socket.gethostname()
    message = (
        f"process 1 of 3 came from {here}, but {here} is where that number is; give each process "
        f"its own, from 0 to 2"
    )
    assert meet_all([0, 1, 1], 3, seconds=20) == [message] * 3


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at here:{port}: Address already in"):
            meet(f"here:{port}", 2, 0, seconds=1)
