"""Opening a run by what a person calls it: its name in a storage folder, or its own folder."""

from __future__ import annotations

from condu_ray.command_line import ConfigError
from condu_ray.plan.stored import Stored, find
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store.backend import backend
from condu_ray.store.layout import config_path, run_folder
from condu_ray.store.location import Location, Place, given


def open_run(storage: str | Place, name: str) -> StoredRun:
    """Opens a run, or a trial of a sweep by `<sweep>.<trial>`, finished or at work; its tasks have to be there too.

    Args:
        storage: the storage folder.
        name: of the run.

    Raises:
        ConfigError: storage holds none of that name.
        ValueError: its tasks or its backbone are not where its settings say.
    """
    found = find_stored(Location(storage), name)
    if found.kind != "run":
        raise ConfigError(f"{name}: is a sweep; open_sweep opens it, and a trial of it is <sweep>.<trial>")
    return found.runs(Location(storage))[name]


def find_stored(storage: Place, name: str) -> Stored:
    """Reads what storage holds under a name.

    Raises:
        ConfigError: there is no such storage, or it holds none of that name.
    """
    if not backend(storage).exists(storage):
        raise ConfigError(f"{storage}: no such folder; give the storage of the run")
    return find(storage, name)


def run_place(run: str, storage: str | Place = "storage") -> tuple[Location, str]:
    """Returns the storage folder and the name of a run that a person names.

    Args:
        run: its folder (`<storage>/runs/<name>`), or its name in `storage`.
        storage: where a name is looked for.
    """
    place = given(run)
    if backend(place).exists(config_path(place)):
        folder = place.absolute()
        home = folder.parent.parent
        if run_folder(home, folder.name) == folder:
            return home, folder.name
    return given(storage), run
