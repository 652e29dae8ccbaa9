import pytest

from condu_ray.commands.sweep import main


def test_a_sweep_in_a_bucket_is_refused_before_anything_is_asked_of_it(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--orders", "2", "--method", "condu", "--storage", "s3://nobody/x"])
    assert end.value.code == 2
    assert "--storage s3://nobody/x: sweeps in a bucket are not done yet; give a folder" in capsys.readouterr().err
