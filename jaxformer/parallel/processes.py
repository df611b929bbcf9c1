"""Several processes as one run: how they find each other, and what they do together.

A process that is alone is process 0 of 1; nothing is started for it, and every function here
returns at once.
"""

import atexit
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
from jax._src import distributed
from jax._src.clusters import ClusterEnv

from jaxformer.errors import UserError
from jaxformer.parallel.rendezvous import meet
from jaxformer.parallel.watch import Stop, Watch

JOIN_SECONDS = 300
LEAST_TIMEOUT = 3
A_DAY = 24 * 3600 * 1000  # milliseconds: the watch ends every wait for a process that is gone

_watch: Watch | None = None
_gathered = itertools.count()
_told = itertools.count()


@dataclass(frozen=True)
class Place:
    """One process's place among all."""

    coordinator: str  # host:port of process 0
    count: int
    index: int
    found_by: str


@contextmanager
def joined(
    coordinator: str | None, count: int | None, index: int | None, timeout: float
) -> Iterator[None]:
    """Within it, this process is one of several, if there are. Enter it before using any device.

    Without a coordinator, the place comes from the cluster, if jax knows it: a TPU pod, Slurm,
    Kubernetes, Open MPI. All processes then start, fail and end together; process 0 alone prints
    anything but errors. If a process does not answer for `timeout` seconds, the others end with a
    message that names it.

    Raises:
        UserError: the place is incomplete or impossible; other processes do not come; or the
            time-out is too short.
    """
    global _watch
    if not timeout >= LEAST_TIMEOUT:
        raise UserError(
            f"--peer-timeout is {timeout:g}; allowed: {LEAST_TIMEOUT} seconds or more, because "
            f"every process answers once per second"
        )
    place = _place(coordinator, count, index)
    if place is None:
        yield
        return
    hosts = _join(place, timeout)
    client = distributed.global_state.client
    watch = _watch = Watch(client, place.index, hosts, place.coordinator, timeout)
    watch.start()
    try:
        yield
        barrier("end")
    except BaseException as error:
        # Others are gone or will be: jax must not wait for them at its exit.
        atexit.register(leave, watch.fail(error))
        raise
    watch.end()
    jax.distributed.shutdown()
    _watch = None


def _place(coordinator: str | None, count: int | None, index: int | None) -> Place | None:
    given = {"--coordinator": coordinator, "--processes": count, "--process": index}
    missing = [flag for flag, value in given.items() if value is None]
    if count == 1:
        return None
    if len(missing) == len(given):
        return _detected()
    if coordinator is None or count is None or index is None:
        raise UserError(
            f"{', '.join(given)} go together, and {' and '.join(missing)} is missing; give all, or "
            f"none where the cluster is detected, or --processes 1 to stay alone"
        )
    if count < 1:
        raise UserError(f"--processes is {count}; allowed: 1 or more")
    if not 0 <= index < count:
        raise UserError(f"--process is {index}; allowed: 0 to {count - 1}, for --processes {count}")
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator is '{coordinator}'; give process 0's HOST:PORT")
    return Place(coordinator, count, index, "flags")


def _detected() -> Place | None:
    """The place that a cluster known to jax gives this process, if there are several."""
    for cluster in ClusterEnv._cluster_types:
        if cluster.opt_in_only_method or not cluster.is_env_present():
            continue
        try:
            count = cluster.get_process_count()
            if count == 1:
                return None
            port = os.environ.get("JAX_COORDINATOR_PORT")
            coordinator = cluster.get_coordinator_address(JOIN_SECONDS, port)
            return Place(coordinator, count, cluster.get_process_id(), cluster.name)
        except Exception as error:  # of the cluster's own interfaces, of any kind
            raise UserError(
                f"this looks like a cluster ({cluster.__name__}), but it does not say which "
                f"processes take part: {error}; give --coordinator, --processes and --process, or "
                f"--processes 1 to stay alone"
            ) from error
    return None


def _join(place: Place, timeout: float) -> list[str]:
    """Start jax's distributed runtime; → the host names of all processes."""
    if place.index:
        null = os.open(os.devnull, os.O_WRONLY)
        sys.stdout.flush()
        os.dup2(null, 1)  # for what libraries print, too
    else:
        where = f"by {place.found_by}, coordinated at {place.coordinator}"
        print(f"process {place.index} of {place.count} {where}", file=sys.stderr, flush=True)
    hosts = meet(place.coordinator, place.count, place.index, JOIN_SECONDS)
    # This service takes SIGTERM away from Python; `Stop` agrees on where to stop instead.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        cluster_detection_method="deactivate" if place.found_by == "flags" else None,
        initialization_timeout=JOIN_SECONDS,
        heartbeat_timeout_seconds=round(10 * timeout),  # ours is to come first
        shutdown_timeout_seconds=round(timeout),
    )
    return hosts


def index() -> int:
    return _watch.index if _watch else 0


def count() -> int:
    return _watch.count if _watch else 1


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return index() == 0


def common_stop() -> Stop:
    """The agreement on where all processes stop."""
    return _watch.stop if _watch else Stop()


def before_leaving(action: Callable[[], None]) -> None:
    """Do this last where this process ends because another one is gone."""
    if _watch:
        _watch.before_leaving.append(action)


def barrier(name: str) -> None:
    """Wait until all processes are here; each `name` once."""
    if _watch:
        _watch.client.wait_at_barrier(name, A_DAY)


def first_alone(name: str, work: Callable[[], None]) -> None:
    """`work` is done by process 0, and the others wait for it."""
    if is_first():
        work()
    barrier(name)


@contextmanager
def first_goes_first(name: str) -> Iterator[None]:
    """The others enter when process 0 has left, and find what it has made."""
    if not is_first():
        barrier(name)
    yield
    if is_first():
        barrier(name)


def gather(mine: Any) -> list[Any]:
    """The value of every process, in their order, sent as JSON; all call it in the same order."""
    if _watch is None:
        return [mine]
    name = f"jaxformer/gathered/{next(_gathered)}"
    _watch.client.key_value_set(f"{name}/{index()}", json.dumps(mine))
    return [
        json.loads(_watch.client.blocking_key_value_get(f"{name}/{process}", A_DAY))
        for process in range(_watch.count)
    ]


def told_by(process: int, mine: Any) -> Any:
    """The value of one process, sent as JSON, which waits for nobody; all call it in the same
    order."""
    if _watch is None:
        return mine
    name = f"jaxformer/told/{next(_told)}"
    if index() == process:
        _watch.client.key_value_set(name, json.dumps(mine))
        return mine
    return json.loads(_watch.client.blocking_key_value_get(name, A_DAY))


def check_same(name: str, mine: Mapping[str, Any]) -> None:
    """Refuse to continue where a process has other values than process 0; each `name` once.

    Raises:
        UserError: in the process that differs, with the keys and both values.
    """
    if _watch is None:
        return
    mine = json.loads(json.dumps(mine))
    if is_first():
        _watch.client.key_value_set(f"jaxformer/same/{name}", json.dumps(mine))
    first = json.loads(_watch.client.blocking_key_value_get(f"jaxformer/same/{name}", A_DAY))
    lines = [
        f"{key}: {_shown(first, key)} in {_watch.name(0)}, {_shown(mine, key)} here"
        for key in dict.fromkeys([*first, *mine])
        if first.get(key) != mine.get(key)
    ]
    if lines:
        raise UserError(
            f"the {name} of {_watch.name(index())} differs from that of the others; start all "
            f"processes with the same command and the same code\n  " + "\n  ".join(lines)
        )
    barrier(f"same {name}")


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not there"


def leave(code: int) -> NoReturn:
    """End this process at once: flush what it has printed, and wait for nothing."""
    with suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
