"""Bundle size against the number of tasks: `jobs/bench/bundles.py RUN --method condu`, of each of a run's sessions.

Every session is written as `condu-ray export --bundle` does, and counted from the files. Prints a table, and JSON with
`--json FILE`.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from condu_ray.plan.opened import open_run, run_place
from condu_ray.plan.stored_run import StoredRun
from condu_ray.use.bundle import sizes, write_bundle
from condu_ray.use.served import chosen_method, served_run
from condu_ray.vlm.model import WEIGHTS


def measure(found: StoredRun, method: str | None = None) -> list[dict[str, int]]:
    """Returns bytes by tasks: the whole bundle, theta0, all else, and what one fp32 model a task would take.

    Args:
        found: the run.
        method: which of its methods; None: its only one.
    """
    name, rows = chosen_method(found, method), []
    for session in range(len(found.methods[name].entries)):
        served = served_run(found, name, session)
        with tempfile.TemporaryDirectory() as folder:
            write_bundle(served, Path(folder) / "bundle")
            files = sizes(Path(folder) / "bundle")
        models = (session + 1) * sum(4 * tensor.numel() for tensor in served.backbone.snapshot().values())
        theta0 = files.get(WEIGHTS, 0)
        whole = sum(files.values())
        rows.append(
            {
                "tasks": session + 1,
                "bundle": whole,
                "theta0": theta0,
                "beside": whole - theta0,
                "one_model_a_task": models,
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's name in --storage, or its folder")
    parser.add_argument("--storage", default="storage")
    parser.add_argument("--method")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(argv)
    rows = measure(open_run(*run_place(arguments.run, arguments.storage)), arguments.method)
    print("| tasks | bundle, MB | of it theta0 | beside it | one fp32 model a task |\n| --: | --: | --: | --: | --: |")
    for row in rows:
        sized = (row[name] / 1e6 for name in ("bundle", "theta0", "beside", "one_model_a_task"))
        print(f"| {row['tasks']} | " + " | ".join(f"{size:,.1f}" for size in sized) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
