"""Pictures that are not drawn, for tests of what is on them."""

import pytest
from matplotlib.patches import Rectangle
from matplotlib.spines import Spine

ASKED = ("get_text", "get_position", "get_xydata", "get_offsets", "get_array", "get_facecolor", "get_xlim", "get_ylim",
         "get_visible", "get_linestyle")  # fmt: skip


def sketch(figure) -> bytes:
    """What is on a picture: its texts, points, bars, colours and axes, one after the other."""
    found = [figure.get_size_inches().tolist()]
    for artist in figure.findobj(lambda artist: not isinstance(artist, Spine)):
        said = [getattr(artist, name)() for name in ASKED if hasattr(artist, name)]
        if isinstance(artist, Rectangle):
            said.append(artist.get_bbox())
        found.append((type(artist).__name__, [one.tolist() if hasattr(one, "tolist") else one for one in said]))
    return repr(found).encode()


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of reports are put together, and what is on them is written, which takes a tenth of the time."""
    monkeypatch.setattr("condu_ray.report.style.png", sketch)
