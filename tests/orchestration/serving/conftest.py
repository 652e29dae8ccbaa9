"""A run to serve, made without Ray, and its page in a real browser."""

import asyncio
import contextlib
import os
import shutil
import socket
import threading

import pytest

from condu_ray.use.edition import Edition
from condu_ray.use.loading import resolved
from condu_ray.use.serving import Source
from condu_ray.vlm.preprocess import Preprocessor
from tests.use.conftest import make_run


@pytest.fixture(scope="session")
def storage(tmp_path_factory, task_data, small_backbone):
    return make_run(tmp_path_factory.mktemp("served") / "storage", task_data, small_backbone, ("condu", "condu-svd"))


class Here:
    """Answers in this process, in place of Ray Serve's replicas."""

    def __init__(self, source):
        self.edition = Edition(resolved(source), "cpu", 16)
        self.about, self.preprocessor = self.edition.about, Preprocessor(self.edition.about.preprocess)

    async def predict(self, about, pixels_HWC, asked):
        (found,) = await asyncio.to_thread(self.edition.answer, [asked], [pixels_HWC])
        return found

    async def check(self):
        self.edition.check()

    async def ready(self):
        pass


@contextlib.contextmanager
def address_of(app):
    """Serves an application on a free port of this machine alone; the address."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture(scope="module")
def here(storage):
    return Here(Source(run="r", storage=str(storage), method="condu-svd", session=2))


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, Debian's or what CHROMIUM names."""
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no Chromium: install Debian's package chromium, or name one by CHROMIUM")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
