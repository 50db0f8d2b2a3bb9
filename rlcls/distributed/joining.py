"""Connects the processes of a run at its start, compares their options, and starts JAX's runtime."""

from __future__ import annotations

import atexit
import contextlib
import errno
import glob
import os
import platform
import re
import socket
import sys
import time
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

from rlcls._errors import UserError, one_line

from .connected import Connected
from .hosts import ALONE, Hosts
from .messages import Closed, Link

_VERSION = 1  # changes with the format of the messages
_PACKAGES = ("rlcls", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "ale-py")
_GRACE = 3.0  # seconds after an exception in which the death of another process may be noticed as its cause
_PORT = 29_417  # the coordinator's port on a TPU slice
# The coordinator's ports under SLURM, which are below the ports that Linux gives to outgoing connections.
_FIRST_PORT, _PORTS = 20_000, 12_000


class Place(NamedTuple):
    """The place of this process among several.

    Attributes:
      coordinator: host:port of process 0.
      processes: the number of processes.
      process: the number of this process.
      timeout: seconds that the processes wait for each other at the start.
    """

    coordinator: str
    processes: int
    process: int
    timeout: float


@contextlib.contextmanager
def joined(options: Mapping[str, Any], facts: Mapping[str, Any], *, runtime: bool = True) -> Iterator[Hosts]:
    """A context with the processes of this run; `ALONE` if there is only one.

    An exception that leaves the block also ends the other processes. Their exit code is 2 if it is a UserError, and 1
    otherwise.

    Args:
      options: coordinator, num_processes, process_id and timeout. If the first three are None, SLURM or the TPU slice
        decides them.
      facts: nested dictionaries of JSON-able values that must be equal in all processes, such as the configuration.
      runtime: whether JAX's distributed runtime is started, which must precede any use of a device.

    Raises:
      UserError: the processes do not meet, or have different facts. All of them raise it.
    """
    where = place(options, os.environ)
    if where is None:
        yield ALONE
        return
    hosts, port = _meet(where, facts)
    try:
        if runtime:
            _start_runtime(where, port)
        yield hosts
    except BaseException as error:
        if not isinstance(error, UserError):
            # When another process dies, a collective can fail before the closed connection is noticed. During this
            # pause the listening thread notices it, and ends this process with the right message.
            time.sleep(_GRACE)
        code = 2 if isinstance(error, UserError) else 1
        hosts.fail(one_line(error) or type(error).__name__, code)
        # At exit JAX would wait for the other processes, which have ended.
        atexit.register(_leave, code)
        raise
    hosts.close()


def compare(hosts: Hosts, facts: Mapping[str, Any]) -> None:
    """Compares facts that are known only after the start, such as those of the environments.

    Args:
      hosts: the processes, all of which call this.
      facts: as in `joined`.

    Raises:
      UserError: a process has other facts than process 0. All of them raise it.
    """
    first, *others = hosts.gather(_leaves(facts))
    for index, other in enumerate(others, 1):
        if problem := _other_facts(f"process {index}", first, other):
            raise UserError(problem)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def place(options: Mapping[str, Any], environment: Mapping[str, str]) -> Place | None:
    """The place of this process, from its options or from SLURM or a TPU slice; None if it is alone.

    Raises:
      UserError: some of the options are missing, or out of range.
    """
    names = ("coordinator", "num_processes", "process_id")
    given = [name for name in names if options.get(name) is not None]
    timeout = float(options.get("timeout") or 60)
    if not given:
        found = _slurm(environment) or _tpu(environment)
        return found and Place(*found, timeout)
    if missing := [name for name in names if name not in given]:
        raise UserError(f"distributed.{given[0]} needs distributed.{' and distributed.'.join(missing)}, too")
    coordinator, count, index = (options[name] for name in names)
    if count < 1 or not 0 <= index < count:
        raise UserError(
            f"distributed.process_id ({index}) must be from 0 to distributed.num_processes ({count}) - 1"
        )
    _split(coordinator)
    return Place(coordinator, count, index, timeout) if count > 1 else None


def _slurm(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    # SLURM sets SLURM_NTASKS and SLURM_PROCID in a batch script, too. Only a process of a step has SLURM_STEP_NODELIST.
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    count = int(environment.get("SLURM_NTASKS", "1"))
    if count < 2 or "SLURM_PROCID" not in environment or not nodes:
        return None
    # Each step of a job, and each attempt of one that was queued again, has a port of its own.
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    attempt = ".".join(environment.get(name, "0") for name in names)
    port = _FIRST_PORT + zlib.crc32(attempt.encode()) % _PORTS
    return f"{_first_node(nodes)}:{port}", count, int(environment["SLURM_PROCID"])


def _first_node(nodes: str) -> str:
    """The first of SLURM's list of nodes.

    >>> _first_node("node[03-05,9],other")
    'node03'
    """
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    return (match[1] + (match[2] or "")) if match else nodes


def _tpu(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    workers = [each for each in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if each]
    index = environment.get("TPU_WORKER_ID", "")
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if not workers and (chips or "GCE_METADATA_HOST" in environment):
        workers, index = _tpu_metadata(environment.get("GCE_METADATA_HOST", "metadata.google.internal"))
    if len(workers) < 2 or not index.isdecimal():
        return None
    return f"{workers[0]}:{_PORT}", len(workers), int(index)


def _tpu_metadata(host: str) -> tuple[list[str], str]:
    """The addresses of a TPU slice's workers and the number of this one, from the TPU VM's metadata server."""

    def ask(attribute: str) -> str:
        url = f"http://{host}/computeMetadata/v1/instance/attributes/{attribute}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=2) as response:
            return str(response.read().decode())

    try:
        endpoints, index = ask("worker-network-endpoints"), ask("agent-worker-number")
    except OSError:
        return [], ""
    return [each.split(":")[2] for each in endpoints.split(",") if each.count(":") >= 2], index.strip()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"distributed.coordinator={address}: expected host:port")
    return host.strip("[]"), int(port)


def _meet(where: Place, facts: Mapping[str, Any]) -> tuple[Connected, int]:
    """The connected processes, and a port for JAX's runtime on the host of process 0."""
    card = {
        "version": _VERSION,
        "index": where.process,
        "count": where.processes,
        "host": socket.gethostname(),
        "facts": _leaves({"versions": _versions()} | dict(facts)),
    }
    return _invite(where, card) if where.process == 0 else _visit(where, card)


def _invite(where: Place, card: dict[str, Any]) -> tuple[Connected, int]:
    """Process 0 waits for all other processes."""
    host, port = _split(where.coordinator)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.create_server(address, family=family, backlog=where.processes)
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "the port is in use",
            errno.EADDRNOTAVAIL: "this machine, on which process 0 was started, has no such address",
        }
        reason = reasons.get(error.errno or 0, error.strerror)
        raise UserError(f"distributed.coordinator={where.coordinator}: {reason}") from error
    links: dict[int, Link] = {}
    names = {0: card["host"]}
    end = time.monotonic() + where.timeout
    with server:
        while len(links) < where.processes - 1:
            left = end - time.monotonic()
            if left <= 0:
                missing = sorted(set(range(1, where.processes)) - links.keys())
                are = "es" if len(missing) > 1 else ""
                _refuse_all(
                    links,
                    f"process{are} {', '.join(map(str, missing))} of {where.processes} did not come to "
                    f"{where.coordinator} within {where.timeout:g} s",
                )
            server.settimeout(left)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            link = Link(connection)
            try:
                guest = link.receive(min(left, 5.0))
            except Closed:
                link.close()  # another program connected
                continue
            if guest["kind"] != "join":
                link.close()
                continue
            other = guest["card"]
            if problem := _difference(card, other, names):
                _refuse_all({**links, -1: link}, problem)
            links[other["index"]], names[other["index"]] = link, other["host"]
        with socket.socket(family) as probe:
            probe.bind((address[0], 0))
            runtime_port = probe.getsockname()[1]
    ordered = [names[index] for index in range(where.processes)]
    for link in links.values():
        link.send("welcome", names=ordered, port=runtime_port)
    return Connected(0, ordered, links), runtime_port


def _refuse_all(links: Mapping[int, Link], problem: str) -> None:
    for link in links.values():
        with contextlib.suppress(Closed):
            link.send("refuse", reason=problem)
    raise UserError(problem)


def _visit(where: Place, card: dict[str, Any]) -> tuple[Connected, int]:
    """Every other process connects to process 0."""
    host, port = _split(where.coordinator)
    end = time.monotonic() + where.timeout
    while True:
        try:
            link = Link(socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic())))
            break
        except OSError as error:
            if time.monotonic() > end or isinstance(error, socket.gaierror):
                raise UserError(
                    f"process {where.process} finds no process 0 at distributed.coordinator={where.coordinator} within "
                    f"{where.timeout:g} s ({error.strerror or error})"
                ) from error
            time.sleep(0.1)
    try:
        link.send("join", card=card)
        answer = link.receive(max(0.1, end - time.monotonic()) + 5.0)
    except Closed as error:
        raise UserError(
            f"distributed.coordinator={where.coordinator}: the program there is not rlcls, or it ended"
        ) from error
    if answer["kind"] == "refuse":
        raise UserError(answer["reason"])
    if answer["kind"] != "welcome":
        raise UserError(f"distributed.coordinator={where.coordinator}: the program there is not rlcls")
    return Connected(where.process, answer["names"], {0: link}), answer["port"]


def _difference(mine: dict[str, Any], theirs: dict[str, Any], names: Mapping[int, str]) -> str | None:
    """What prevents two processes from training together, in one line; None if nothing does."""
    index = theirs["index"]
    who = f"process {index} on {theirs['host']}"
    if theirs["version"] != mine["version"]:
        return f"{who} runs another version of rlcls than process 0"
    if theirs["count"] != mine["count"]:
        return f"{who} was started as one of {theirs['count']} processes, and process 0 as one of {mine['count']}"
    if index in names:
        return f"two processes have distributed.process_id={index}, on {names[index]} and on {theirs['host']}"
    return _other_facts(who, mine["facts"], theirs["facts"])


def _other_facts(who: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            return f"{who} has {name}={now.get(name)}, and process 0 has {name}={before.get(name)}"
    return None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries: the values by their dotted names."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        values |= (
            _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return values


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _start_runtime(where: Place, port: int) -> None:
    """Starts JAX's distributed runtime. Its timeouts are long, because `Connected` notices deaths earlier."""
    import jax

    # JAX's preemption service would handle SIGTERM from here on, and one that comes before the run collects signals
    # would be lost.
    jax.config.update("jax_enable_preemption_service", False)
    host, _ = _split(where.coordinator)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        jax.distributed.initialize(
            address,
            where.processes,
            where.process,
            coordinator_bind_address=address,
            cluster_detection_method="deactivate",
            initialization_timeout=int(max(10, where.timeout)),
            heartbeat_timeout_seconds=100,
            shutdown_timeout_seconds=10,
        )
    except RuntimeError as error:
        raise UserError(f"JAX's distributed runtime does not start: {one_line(error)}") from error
