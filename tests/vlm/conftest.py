import pytest

from condu_ray.vlm import moments as moments_module
from condu_ray.vlm.library import open_clip


@pytest.fixture(scope="module")
def few_random_features():
    """As many as a test has time for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments_module, "RANDOM", 48)
        moments_module._projection.cache_clear()
        yield
    moments_module._projection.cache_clear()


@pytest.fixture
def shallow(monkeypatch):
    """An architecture that open_clip knows by its name, ViT-S-32-alt, has one block a tower."""
    config = open_clip.get_model_config("ViT-S-32-alt")
    for tower in ("vision_cfg", "text_cfg"):
        config[tower] |= {"layers": 1}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-S-32-alt", config)
