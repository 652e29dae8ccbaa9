"""What the tests of `dashboards/` share: its modules, and a folder of helpers here."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parents[1] / "dashboards"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
