"""The table of bundle sizes, against the files themselves."""

import json

from condu_ray.use.bundle import sizes, write_bundle
from condu_ray.use.served import served_run
from jobs.bench.bundles import main
from tests.use.conftest import found, storage  # noqa: F401


def test_a_row_a_session(found, storage, tmp_path, capsys):  # noqa: F811
    main(["r", "--storage", str(storage), "--method", "condu", "--json", str(tmp_path / "sizes.json")])
    rows = json.loads((tmp_path / "sizes.json").read_text())
    write_bundle(served_run(found, "condu", 1), tmp_path / "bundle")
    files = sizes(tmp_path / "bundle")
    assert [row["tasks"] for row in rows] == [1, 2, 3]
    assert abs(rows[1]["bundle"] - sum(files.values())) < 50  # times in manifests
    assert rows[1]["theta0"] == files["open_clip_model.safetensors"]
    assert rows[0]["beside"] < rows[1]["beside"] < rows[2]["beside"]
    assert rows[2]["one_model_a_task"] == 3 * rows[0]["one_model_a_task"]
    assert f"| 2 | {rows[1]['bundle'] / 1e6:,.1f} |" in capsys.readouterr().out
