"""Checkpoints in storage: where a long fine-tuning goes on when its worker or node is lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from condu_ray.learn.checkpoint import Checkpoint
from condu_ray.store import artifacts
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.backend import backend
from condu_ray.store.layout import checkpoint_folder, expert_checkpoints_folder
from condu_ray.store.location import Place

log = logging.getLogger(__name__)

FILE = "checkpoint.safetensors"


class CheckpointStore:
    """The checkpoints of an expert that is being trained: `<storage>/checkpoints/<key>/<step>`, of which one stays.

    Args:
        storage: storage folder.
        key: the expert's. Who writes or removes has claimed it.
        task: the expert's.
        by: what bits depend on and keys do not, such as the number of workers; JSON values. A training that is done in
            another way begins anew.
    """

    def __init__(self, storage: Place, key: str, task: str, by: Mapping[str, Any]) -> None:
        self._storage, self._key, self._task, self._by = storage, key, task, dict(by)
        self._place = expert_checkpoints_folder(storage, key)

    def latest(self) -> int:
        """Returns the steps that the newest whole checkpoint holds; 0: there is none, and those of no use are gone."""
        for step in sorted((int(name) for name in artifacts.names(self._place) if name.isdecimal()), reverse=True):
            folder = checkpoint_folder(self._storage, self._key, step)
            try:
                if artifacts.read_meta(folder)["by"] == self._by:
                    artifacts.verified(folder, FILE)
                    return step
                log.warning("%s: was made with other workers, threads or devices; training begins anew", folder)
            except (ArtifactError, KeyError) as error:
                log.warning("%s: damaged (%s); training goes on from an earlier one, or begins anew", folder, error)
        self.clear()
        return 0

    def load(self, step: int) -> Checkpoint:
        """Returns a checkpoint.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        return Checkpoint(step, artifacts.load_tensors(checkpoint_folder(self._storage, self._key, step), FILE))

    def write(self, found: Checkpoint) -> None:
        """Publishes a checkpoint and removes those before it; one that cannot be written is warned of."""
        folder, tensors = checkpoint_folder(self._storage, self._key, found.step), found.tensors
        meta = {"key": self._key, "task": self._task, "by": self._by}
        try:
            artifacts.publish(folder, meta, lambda beside: artifacts.save_tensors(beside / FILE, tensors), seal=True)
            for name in artifacts.names(self._place):
                if name != folder.name:
                    backend(self._place).remove(self._place / name)
        except OSError as error:
            log.warning("%s: the checkpoint is not written, and training goes on: %s", folder, error)

    def clear(self) -> None:
        """Removes all of them: the expert is there, or cannot be made."""
        try:
            backend(self._place).remove(self._place)
        except OSError as error:
            log.warning("%s: cannot be removed: %s", self._place, error)
