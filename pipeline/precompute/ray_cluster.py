"""The Ray cluster: connecting to it, and what a worker needs of its nodes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sskt.errors import RunError
from sskt.extras import library

_ANSWER_S = 10.0


def import_ray() -> Any:
    """Ray, which nothing imports before it is asked for. Raises MissingExtraError without it."""
    return library("ray", extra="ray", needed_by="--engine ray")


@contextmanager
def connected() -> Iterator[Any]:
    """Ray, connected to the cluster of RAY_ADDRESS, or to one on this machine that ends with the context. A
    connection of the caller's is left as it is. Raises RunError if there is no such cluster.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    # without an address, Ray waits for ever for a dead cluster that has left its own in a file
    address = os.environ.get("RAY_ADDRESS") or "local"
    own = {"object_store_memory": 80 << 20, "include_dashboard": False} if address == "local" else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # of our own cluster; Ray's 15 costs 6 % on full cores
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _require_answer(address)
        ray.init(address, log_to_driver=False, logging_level="error", **own)
    except Exception as error:  # Ray's own are bare
        raise RunError(
            f"the Ray cluster at {address} cannot be reached ({first_line(error)}); check RAY_ADDRESS, or "
            f"unset it for a cluster on this machine"
        ) from error
    try:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has set its own
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def connected_early(module: str) -> Iterator[None]:
    """`connected`, with a process on every node that imports `module`, which takes seconds, while the caller
    does; the first task waits for its core and gets the process. Not where there are GPUs, whose workers are
    processes of their own.
    """
    with connected() as ray:
        importing = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_import)
        if not ray.cluster_resources().get("GPU"):
            for node in ray.nodes():
                if node["Alive"]:
                    importing.remote(module)
        yield


def _import(module: str) -> None:
    __import__(module)


def _require_answer(address: str) -> None:
    """Raise OSError if nobody answers at HOST:PORT, where Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()


def worker_needs(ray: Any, device: object, n_workers: int | None) -> dict[str, float]:
    """What a worker needs: a GPU if there are any, else its share of the CPUs, by default those of a node."""
    has = ray.cluster_resources()
    if has.get("GPU") and device != "cpu":
        return {"GPU": 1, "CPU": 1}
    n = n_workers or sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())
    share = has.get("CPU", 1) / max(n, 1)
    return {"CPU": int(share) or round(share, 3)}


def room_for_workers(has: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """The number of workers that fit into what a node or a cluster has, at least 1."""
    return max(1, int(min(has.get(name, 0) / need for name, need in needs.items())))


def settle(folder: str, needs: Mapping[str, float], n_workers: int | None) -> str:
    """Begin work in a worker process: in the command's folder, with its part of the node's memory and cores.

    Returns the node's address. Raises RunError if the node has no such folder.
    """
    ray = import_ray()
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    room = room_for_workers(node["Resources"], needs)
    os.environ["LOCAL_WORLD_SIZE"] = str(min(room, n_workers or room))
    os.environ.pop("LOCAL_RANK", None)  # Ray shows a worker its own devices only
    try:
        os.chdir(folder)
    except OSError as error:
        raise RunError(
            f"node {node['NodeManagerAddress']} has no folder {folder}, where the command was started "
            f"({error.strerror}); start it in a folder that every node has"
        ) from error
    return str(node["NodeManagerAddress"])


def first_line(error: Exception) -> str:
    """What an error says, of which Ray's have many lines."""
    return str(error).strip().partition("\n")[0]
