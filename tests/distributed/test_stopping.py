"""All processes stop at the same call of `stops`, however their threads are scheduled."""

import random
import socket
import threading
import time

import pytest

from rlcls.distributed.connected import Connected
from rlcls.distributed.messages import Link


def connected_sockets():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return server.accept()[0], client


@pytest.fixture
def connect():
    """Processes of one run as threads of this one."""
    made = []

    def connect(count):
        pairs = {other: connected_sockets() for other in range(1, count)}
        names = [f"host{index}" for index in range(count)]
        first = Connected(0, names, {other: Link(pair[0]) for other, pair in pairs.items()})
        made.extend([first, *(Connected(other, names, {0: Link(pair[1])}) for other, pair in pairs.items())])
        return list(made)

    yield connect
    closing = [threading.Thread(target=each.close) for each in made]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(timeout=20)


@pytest.mark.parametrize("seed", range(12))
def test_processes_that_are_a_few_steps_apart_stop_at_the_same_step(seed, connect):
    generator = random.Random(seed)
    count, ahead = generator.randint(2, 5), generator.randint(0, 3)
    processes = connect(count)
    askers = {generator.randrange(count): generator.randint(0, 40) for _ in range(generator.randint(1, 3))}
    pauses = [[generator.random() * 0.002 for _ in range(7)] for _ in range(count)]
    done, change = [0] * count, threading.Condition()
    stopped_at = [None] * count

    def train(index):
        for step in range(5000):
            time.sleep(pauses[index][step % 7])
            # As a collective: nobody is more than `ahead` steps before the slowest.
            with change:
                assert change.wait_for(lambda step=step: min(done) >= step - ahead, timeout=20)
            asked = askers.get(index) == step
            if processes[index].stops(asked=asked):
                stopped_at[index] = step
                return
            with change:
                done[index] = step + 1
                change.notify_all()

    threads = [threading.Thread(target=train, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(set(stopped_at)) == 1 and stopped_at[0] is not None
    assert min(askers.values()) <= stopped_at[0] < max(askers.values()) + 60


def test_nobody_stops_unasked(connect):
    processes = connect(3)
    assert not any(each.stops(asked=False) for _ in range(100) for each in processes)
    assert not any(each.stop_asked for each in processes)
