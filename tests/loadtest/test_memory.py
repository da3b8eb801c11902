"""Whose memory is counted, and how it is told."""

import os
import socket
import subprocess
import sys

import psutil
from memory import growth, raylet_of, resident

LISTENER = """
import socket, time
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
time.sleep(60)
"""


def test_the_node_is_found_by_its_port():
    """It is the parent of who listens there; nobody there is nobody."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        found = raylet_of(port)
        held = resident(psutil.Process(os.getpid()))
        child.kill()
    assert found is not None
    assert found.pid == os.getpid()
    assert sum(held.values()) > psutil.Process().memory_info().rss / 1e6
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert raylet_of(port) is None


def test_growth_is_the_last_minute_beside_the_first():
    """By medians, so that one peak doesn't count; what came later was nothing before."""
    samples = [(float(t), {"rank": 100.0 + t, "store": 5.0}) for t in range(0, 301, 10)]
    samples[3] = (30.0, {"rank": 9e9, "store": 5.0})
    samples[-7:] = [(t, held | {"late": 1.0}) for t, held in samples[-7:]]
    assert growth(samples) == {
        "late": {"first_minute_mb": 0.0, "last_minute_mb": 1.0},
        "rank": {"first_minute_mb": 140.0, "last_minute_mb": 370.0},
        "store": {"first_minute_mb": 5.0, "last_minute_mb": 5.0},
    }
    assert growth([]) == {}
