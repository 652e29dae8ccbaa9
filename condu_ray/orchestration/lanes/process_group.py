"""How the workers of a lane find one another, without torch in the lane's controller.

Ray's own `TorchConfig` does the same, but its module loads torch wherever it is unpickled: 270 MiB in each controller
(results `head`). So the controller has this, and torch is loaded by the workers, which need it.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

JOIN_SECONDS = 1800
"""How long workers wait for one another, as Ray's own."""
LEAVE_SECONDS = 5.0


class OwnDevice(AbstractContextManager[None]):
    """What the training runs in, on a worker: its GPU is torch's current one."""

    def __enter__(self) -> None:
        import torch
        from ray.train.torch import get_device

        if torch.cuda.is_available() and (device := get_device()).type == "cuda":
            torch.cuda.set_device(device)

    def __exit__(self, *error: object) -> None:
        """Does nothing."""


class ProcessGroup(BackendConfig):  # type: ignore[misc]
    """A process group of torch over a lane's workers: by NCCL with GPUs, by Gloo without."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Who sets it up."""
        return _SetUp

    @property
    def train_func_context(self) -> type[AbstractContextManager[None]]:
        """What the training runs in."""
        return OwnDevice


class _SetUp(Backend):  # type: ignore[misc]
    """Runs in the controller."""

    share_cuda_visible_devices = True  # NCCL's way between the GPUs of a node

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        world = len(worker_group)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        address = worker_group.execute_single(0, _address)
        ray.get([worker_group.execute_single_async(rank, _join, rank, world, gpus, *address) for rank in range(world)])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        left = worker_group.execute_async(_leave, len(worker_group))
        with suppress(GetTimeoutError):  # they are ended anyway
            ray.get(left, timeout=LEAVE_SECONDS)


def _address() -> tuple[str, int]:
    from ray.train._internal.utils import get_address_and_port

    found: tuple[str, int] = get_address_and_port()
    return found


def _join(rank: int, world: int, gpus: bool, address: str, port: int) -> None:
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _set_torch_distributed_env_vars()
    _setup_torch_process_group("nccl" if gpus else "gloo", rank, world, "env://", JOIN_SECONDS)


def _leave(world: int) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=world > 1)
