"""What a process finds around it that Ray cannot work in; each fault is one sentence with what to set."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer at its address."""
SOCKET_BYTES = 107
"""Longest path of a Unix socket, in bytes."""
SESSION = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store_10"
"""What Ray puts behind its temporary folder, as long as it can become."""
TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless ~/.ray/auth_token has it"
"""What to do where a cluster asks for a token: one that `ray start` begins does so where there is one."""
NUMBERS = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_worker_maximum_startup_concurrency", "OMP_NUM_THREADS")


class SurroundingsError(ValueError):
    """Ray cannot be joined or started as things are; the message names the variable or address and what to set."""


def check_surroundings(address: str, variables: Mapping[str, str] = os.environ) -> None:
    """Looks at what would otherwise fail late, or as another error; starts nothing.

    Args:
        address: the cluster's, or `local`.
        variables: the environment.

    Raises:
        SurroundingsError: the first thing that is wrong.
    """
    if variables.get("RAY_TRAIN_V2_ENABLED", "1").lower() not in ("1", "true"):
        raise SurroundingsError(
            f"RAY_TRAIN_V2_ENABLED={variables['RAY_TRAIN_V2_ENABLED']}: lanes train by Ray Train V2; unset it"
        )
    for name in NUMBERS:
        try:
            good = float(variables.get(name, "1").split(",")[0]) > 0
        except ValueError:
            good = False
        if not good:
            raise SurroundingsError(f"{name}={variables[name]}: is no number above 0; set one, or unset it")
    if address == "local":
        _check_temporary(variables)
    elif address != "auto":
        _check_address(address)


def _check_temporary(variables: Mapping[str, str]) -> None:
    """Refuses a temporary folder in which Ray's sockets would have too long a name, or none at all."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in variables), "RAY_TMPDIR")
    folder = variables.get(name, "/tmp")
    length, most = len(os.fsencode(folder)), SOCKET_BYTES - len(SESSION)
    if length > most:
        raise SurroundingsError(
            f"{name}={folder}: has {length} bytes, and Ray's sockets in it would have too long a name; set RAY_TMPDIR "
            f"to a folder of at most {most} bytes, such as /tmp"
        )
    there = folder
    while not os.path.exists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    if not (os.path.isdir(there or ".") and os.access(there or ".", os.W_OK)):
        raise SurroundingsError(f"{name}={folder}: is no folder that Ray can write to; set RAY_TMPDIR to one")


def _check_address(address: str) -> None:
    """Refuses an address where nobody listens, for which Ray itself would try for a quarter of an hour."""
    given = f"--cluster.address or RAY_ADDRESS {address}"
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port or (10001 if parts.scheme == "ray" else None)
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.scheme not in ("", "ray"):
        raise SurroundingsError(f"{given}: is no address; give host:port, ray://host:port, auto or local")
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise SurroundingsError(
            f"{given}: no cluster answers there ({error}); give the address of one that is up, or `local` for one of "
            "this machine"
        ) from error


def check_token(address: str) -> None:
    """Refuses a `ray://` address that takes no such token, of which Ray itself says nothing after half a minute.

    Args:
        address: the cluster's; others than `ray://` are not asked.

    Raises:
        SurroundingsError: it is refused.
    """
    if not address.startswith("ray://"):
        return
    refused = False
    with suppress(Exception):  # whatever else is wrong, Ray says
        import grpc
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub

        words: Any = import_module("ray.core.generated.ray_client_pb2")
        with init_grpc_channel(urlsplit(address).netloc) as channel:  # with TLS and token, as Ray's client makes it
            ping = words.ClusterInfoRequest(type=words.ClusterInfoType.PING)
            try:
                RayletDriverStub(channel).ClusterInfo(ping, timeout=ANSWER_SECONDS, metadata=[("client_id", "look")])
            except grpc.RpcError as error:
                refused = error.code() == grpc.StatusCode.UNAUTHENTICATED
    if refused:
        raise SurroundingsError(
            f"--cluster.address or RAY_ADDRESS {address}: the cluster asks for a token, and this process has none, or "
            f"another one; {TOKEN}"
        )
