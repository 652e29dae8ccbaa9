"""Opening a run by what a person calls it: its name in a storage folder, or its own folder."""

from __future__ import annotations

from condu_ray.command_line import ConfigError
from condu_ray.plan.stored import Stored, find
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.layout import config_path, run_folder, sweep_config_path, sweep_folder
from condu_ray.store.location import Location, LocationError, Place, given


def open_run(storage: str | Place, name: str) -> StoredRun:
    """Opens a run, or a trial of a sweep by `<sweep>.<trial>`, finished or at work; its tasks have to be there too.

    Args:
        storage: the storage folder.
        name: of the run.

    Raises:
        ConfigError: storage holds none of that name.
        ValueError: its tasks or its backbone are not where its settings say; or storage's name is empty.
    """
    place = storage_given(storage)
    found = find_stored(place, name)
    if found.kind != "run":
        raise ConfigError(f"{name}: is a sweep; open_sweep opens it, and a trial of it is <sweep>.<trial>")
    return found.runs(place)[name]


def storage_given(storage: str | Place) -> Location:
    """Returns the storage folder that a person names.

    Raises:
        LocationError: as `given`; the message names it.
    """
    try:
        return given(storage)
    except LocationError as error:
        raise LocationError(f"storage: {error}") from None


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

    Raises:
        ConfigError: `storage` has none of that name, and it is a bundle, or another folder or file; says which.
    """
    place = given(run)
    if backend(place).exists(config_path(place)):
        folder = place.absolute()
        home = folder.parent.parent
        if run_folder(home, folder.name) == folder:
            return home, folder.name
    home = given(storage)
    named = (config_path(run_folder(home, run)), sweep_config_path(sweep_folder(home, run)))
    if place.name != run or not any(backend(path).exists(path) for path in named):
        _refuse_other(place, home)
    return home, run


def _refuse_other(place: Location, storage: Location) -> None:
    """Says what a place is that is no run, where something is there.

    Raises:
        ConfigError: something is there.
    """
    if artifacts.is_file(place):
        raise ConfigError(f"{place}: is a file; give a run's name in --storage, its folder, or a bundle's, unpacked")
    if not backend(place).exists(place):
        return
    try:
        bundle = "bundle" in artifacts.read_meta(place)
    except artifacts.ArtifactError:
        bundle = False
    if bundle:
        raise ConfigError(
            f"{place}: is a bundle, which is for predict, evaluate, export and serve; give the run that it came from"
        )
    raise ConfigError(
        f"{place}: is a folder, but no run's (a storage folder's runs/NAME) and no bundle's; and {storage} has no run "
        "of that name"
    )
