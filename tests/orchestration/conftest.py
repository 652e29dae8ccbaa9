"""A local cluster that tests share: those that want it come first, one after the other, and the last one ends it."""

from contextlib import ExitStack

import psutil
import pytest

from condu_ray.orchestration.cluster import fork_server, forks

_cluster = ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "local_cluster" not in item.fixturenames)


@pytest.fixture(scope="module")
def local_cluster():
    """This process has joined a local cluster, of forked workers where that can be, whatever this machine has.

    It ends with the last test that wants it, perhaps before its module does: what is to end on it lives for a test.
    """
    import ray

    from condu_ray.orchestration.cluster.env import ray_cluster
    from condu_ray.orchestration.serving.starting import announced
    from condu_ray.orchestration.watch.lines import Lines

    if not ray.is_initialized():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forks, "GPUS", ())
            for name in ("RAY_ADDRESS", forks.SWITCH):
                patch.delenv(name, raising=False)
            _cluster.enter_context(announced())  # as `serve` does: who serves is forked, too
            _cluster.enter_context(ray_cluster("local", "shared", Lines()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None):
    """Ends the cluster where the next test does not want it: nothing of it is left behind."""
    yield
    if "local_cluster" in item.fixturenames and "local_cluster" not in getattr(nextitem, "fixturenames", ()):
        servers = [one for one in psutil.Process().children() if fork_server.__file__ in one.cmdline()]
        forked = [child for server in servers for child in server.children()]
        _cluster.close()
        _, left = psutil.wait_procs(forked, 20)
        assert not left, "workers outlive their cluster"
