"""What Ray tells a driver, without a cluster."""

import threading
from types import SimpleNamespace

from ray._private import worker as ray_worker

from condu_ray.orchestration.cluster.env import ray_heard

FAILED = "Task put failed. There are 1 retries remaining, so the task will be retried. Error: The worker died. (17)"
DIED = (
    "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot the problem, "
    "check the logs for the dead worker. Lease ID: 01ab Worker ID: 02cd Worker PID: 17\n"
)


def test_a_death_of_which_ray_tells_is_a_line_and_no_paragraph(capfd, monkeypatch):
    said, over, told = [], threading.Event(), [FAILED, DIED]

    def poll():
        message = told.pop()
        if not told:
            over.set()
        return None, {"job_id": None, "error_message": message}

    subscriber = SimpleNamespace(subscribe=lambda: None, poll=poll)
    job = SimpleNamespace(binary=lambda: b"job")
    driver = SimpleNamespace(gcs_error_subscriber=subscriber, current_job_id=job)
    monkeypatch.setattr(ray_worker, "_internal_kv_initialized", lambda: False)
    before = ray_worker.print_to_stdstream
    with ray_heard(SimpleNamespace(say=said.append)):
        ray_worker.listen_error_messages(driver, over)
    assert said == [
        "Ray tells: A worker died or was killed while executing a task by an unexpected system error",
        "Ray tells: Task put failed. There are 1 retries remaining, so the task will be retried",
    ]
    assert capfd.readouterr() == ("", "")
    assert ray_worker.print_to_stdstream is before
