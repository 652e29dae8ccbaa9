"""A change of a run begins no fork server for what is in storage already."""

from contextlib import nullcontext

from condu_ray.config import Experiment
from condu_ray.orchestration import run as main_job


def test_a_change_of_a_run_begins_no_fork_server_for_its_last_look(monkeypatch):
    begun = []
    monkeypatch.setattr(main_job, "forks", lambda address: nullcontext(begun.append(address)))
    monkeypatch.setattr(main_job, "check_tracking", lambda config: None)
    monkeypatch.setattr(main_job, "_run", lambda config, lines, held: {})
    main_job.run(Experiment(), held=lambda: None)
    assert begun == []
    main_job.run(Experiment())
    assert len(begun) == 1
