"""Which rank counts as lost. That a run ends with it is tested with the watchdog."""

import queue
import socket
import threading
import time

import pytest
import torch.distributed as dist

from unibert.training.ranks.lifelines import Lifelines

SOON_S = 60.0


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return dist.HashStore()


@pytest.fixture
def of_rank(store):
    return {rank: Lifelines(rank, 4, store) for rank in range(4)}


def finding(lines: Lifelines) -> "queue.SimpleQueue[int | None]":
    found: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: found.put(lines.wait_for_lost_rank()), daemon=True).start()
    return found


def test_a_rank_that_ends_without_closing_is_reported_to_all_others(of_rank, store):
    found = {rank: finding(of_rank[rank]) for rank in (0, 1)}
    # One that is done, and one that never was a rank; their connections close as those of a process that ends.
    of_rank[2].close()
    del of_rank[2]
    with socket.create_connection(("127.0.0.1", int(store.get("lifelines").split()[0]))) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n")
    with pytest.raises(queue.Empty):
        found[0].get(timeout=1)
    del of_rank[3]
    assert [found[rank].get(timeout=SOON_S) for rank in (0, 1)] == [3, 3]


def test_rank_0_may_close(of_rank):
    finding(of_rank[0])
    found = finding(of_rank[1])
    # Until it has accepted the lines.
    time.sleep(1)
    of_rank[0].close()
    assert found.get(timeout=SOON_S) is None
