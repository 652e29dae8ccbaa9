"""Draw a Grafana dashboard as a picture, from a Prometheus server's data: `python jobs/plot_dashboard.py --help`.

For a report, for a machine without Grafana, and to see that every panel has data.
"""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "dashboards"))

from drawing import draw
from reading import PrometheusError, fetch


def moment(text: str, now: float) -> float:
    """Returns a time in Unix seconds: `-90s`, `-15m` or `-2h` from now, Unix seconds, or ISO 8601.

    Raises:
        ValueError: it is none of these.
    """
    relative = re.fullmatch(r"-(\d+(?:\.\d+)?)([smh])", text)
    if relative:
        return now - float(relative[1]) * {"s": 1, "m": 60, "h": 3600}[relative[2]]
    if text == "now":
        return now
    try:
        if math.isfinite(seconds := float(text)):
            return seconds
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise ValueError(f"{text!r} is no time: give -15m, Unix seconds or 2026-01-31T12:00") from error


def read(path: Path) -> dict[str, Any]:
    """Returns a dashboard.

    Raises:
        ValueError: the file cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--dashboard {path}: cannot be read ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("panels"), list):
        raise ValueError(f"--dashboard {path}: is no dashboard; give one of dashboards/grafana/dashboards")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the picture; the exit code is 2 when Prometheus does not answer, or what is given cannot be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0], allow_abbrev=False)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="the server's address")
    parser.add_argument("--dashboard", type=Path, required=True, help="one of dashboards/grafana/dashboards")
    parser.add_argument("--start", default="-1h", help="-15m, Unix seconds or ISO 8601 (write --start=-15m)")
    parser.add_argument("--end", default="now", help="as --start")
    parser.add_argument("--run", default=".*", help="names of the runs, a regular expression; default: all")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    options = parser.parse_args(arguments)
    try:
        dashboard = read(options.dashboard)
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        start, end = (moment(text, time.time()) for text in (options.start, options.end))
        if end <= start:
            raise ValueError(f"--start {options.start} is not before --end {options.end}")
        data = {panel["id"]: fetch(options.prometheus, panel, start, end, options.run) for panel in panels}
    except (PrometheusError, ValueError) as error:
        print(f"error: {error}")
        return 2
    picture = draw(dashboard, data, start, end)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(options.out)
    except (OSError, ValueError) as error:  # a folder that cannot be written, a name whose ending is no picture's
        print(f"error: --out {options.out}: cannot be written ({error})")
        return 2
    empty = [panel["title"] for panel in panels if not data[panel["id"]]]
    print(f"{options.out}: {len(panels) - len(empty)} of {len(panels)} panels have data")
    if empty:
        print(f"empty: {', '.join(empty)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
