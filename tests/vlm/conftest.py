import pytest

from condu_ray.vlm import moments as moments_module


@pytest.fixture(scope="module")
def few_random_features():
    """As many as a test has time for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments_module, "RANDOM", 48)
        moments_module._projection.cache_clear()
        yield
    moments_module._projection.cache_clear()
