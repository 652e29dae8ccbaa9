"""An expert's code in storage: `condu-svd` makes it of the expert and the budget alone, whatever was learned before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from condu_ray.config import content_hash
from condu_ray.merging.codes import code_file
from condu_ray.merging.codes.values import Code, LowRankDeltas
from condu_ray.store import artifacts
from condu_ray.store.layout import code_folder
from condu_ray.store.location import Place

FILE = "code.safetensors"


class StoredCode:
    """Where the code of an expert is: `<storage>/codes/<key>`.

    Args:
        storage: storage folder.
        expert: the expert's key.
        settings: what its code depends on beside, as `ConduSvd.merge_settings` gives it.
    """

    def __init__(self, storage: Place, expert: str, settings: Mapping[str, Any]) -> None:
        self._meta = {"expert": expert, "settings": dict(settings)}
        version = code_file.VERSIONS[LowRankDeltas.KIND]
        key = content_hash([LowRankDeltas.KIND, version, expert, dict(settings)])[:24]
        self._folder = code_folder(storage, key)

    def load(self) -> dict[str, Tensor] | None:
        """Returns the code; None where none was kept.

        Raises:
            ArtifactError: it is damaged.
        """
        if not artifacts.exists(self._folder):
            return None
        return code_file.read(artifacts.verified(self._folder, FILE), LowRankDeltas.KIND)

    def save(self, task: str, code: Code) -> None:
        """Keeps a code; one that is there already wins.

        Args:
            task: whose it is, for who looks into the folder.
            code: the code.

        Raises:
            WriteError: the disk is full or fails; nothing appeared.
        """
        meta = self._meta | {"task": task}
        artifacts.publish(
            self._folder,
            meta,
            lambda draft: code_file.write(draft / FILE, LowRankDeltas.KIND, dict(code)),
            seal=True,
        )
