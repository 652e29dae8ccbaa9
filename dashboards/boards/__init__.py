"""The four dashboards."""

from boards.merging import MERGING
from boards.overview import OVERVIEW
from boards.sweep import SWEEP
from boards.training import TRAINING

BOARDS = {"overview": OVERVIEW, "training": TRAINING, "merging": MERGING, "sweep": SWEEP}
"""By the name of their file."""
