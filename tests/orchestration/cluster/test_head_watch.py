"""A head that goes is told of, once, and that it is back: Ray ends a driver for want of it without a word."""

import socket
import time

from condu_ray.orchestration.cluster.head_watch import head_watched


def until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it is not told"
        time.sleep(0.01)


def test_a_head_that_goes_and_comes_back_is_told_of_once_each():
    said = []
    with socket.create_server(("127.0.0.1", 0)) as there:
        address = f"127.0.0.1:{there.getsockname()[1]}"
        with head_watched(address, said.append, 0.02):
            time.sleep(0.2)
            assert said == []
            there.close()
            until(lambda: said)
            time.sleep(0.2)
            (words,) = said
            assert words.startswith(f"the cluster's head at {address} does not answer (Connection refused): unless")
            with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
                until(lambda: said[1:])
                assert said[1:] == [f"the cluster's head at {address} answers again"]
        time.sleep(0.2)
        assert len(said) == 2
