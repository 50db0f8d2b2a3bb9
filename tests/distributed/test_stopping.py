"""Processes agree on the step to stop at, in whatever order their messages and steps come."""

import random
import socket
import threading
import time

import pytest

from rlcls.distributed.connected import Connected
from rlcls.distributed.messages import Link

STEPS = 400


class Slow(Link):
    """A connection that delays each of its messages about stopping by a random time."""

    def __init__(self, connection, generator):
        super().__init__(connection)
        self._generator = generator

    def send(self, kind, **values):
        if kind in ("ask", "proposal", "answer", "settled"):
            time.sleep(self._generator.choice([0, 0.001, 0.01, 0.03]))
        super().send(kind, **values)


def connected(count, generator, monkeypatch):
    """`count` processes, each in a thread. The death of one is recorded in a list and does not end this process."""
    ends = []
    monkeypatch.setattr(Connected, "_end", lambda self, *what: ends.append((self.index, *what)))
    links = {index: {} for index in range(count)}
    for index in range(1, count):
        with socket.create_server(("127.0.0.1", 0)) as server:
            guest = socket.create_connection(server.getsockname())
            links[0][index] = Slow(server.accept()[0], generator)
        links[index][0] = Slow(guest, generator)
    names = ["here"] * count
    return [Connected(index, names, links[index]) for index in range(count)], ends


def stops_of(hosts, generator, *, apart, asks):
    """The step at which each process stopped; None if it reached the last one.

    Args:
      hosts: the processes.
      generator: draws the durations of steps.
      apart: a process that is this many steps ahead of another waits, as in a collective.
      asks: the step at which each process asks for a stop; None if it does not ask.
    """
    arrived, change = [0] * len(hosts), threading.Condition()
    stopped = ["hangs"] * len(hosts)
    paces = [generator.choice([0, 0, 0.0002, 0.001]) for _ in hosts]

    def main(index):
        for step in range(STEPS):
            with change:
                arrived[index] = step
                change.notify_all()
                change.wait_for(lambda step=step: min(arrived) >= step - apart)
            time.sleep(paces[index])
            if hosts[index].stops(asked=asks[index] is not None and step >= asks[index]):
                stopped[index] = step
                break
        else:
            stopped[index] = None
        with change:
            arrived[index] = STEPS
            change.notify_all()

    threads = [threading.Thread(target=main, args=(index,), daemon=True) for index in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return stopped


@pytest.mark.parametrize("seed", range(30))
def test_all_stop_after_the_same_step_or_none_does(seed, monkeypatch):
    generator = random.Random(seed)
    count, apart = generator.choice([2, 3, 4]), generator.choice([0, 3, STEPS, STEPS])
    asks = [generator.choice([None, 0, 5, 50, STEPS - 2]) for _ in range(count)]
    hosts, ends = connected(count, generator, monkeypatch)
    stopped = stops_of(hosts, generator, apart=apart, asks=asks)
    assert len(set(stopped)) == 1 and ends == [], (stopped, ends, asks)
    first = min((ask for ask in asks if ask is not None), default=None)
    if first is None:
        assert stopped[0] is None
    elif stopped[0] is not None:
        assert stopped[0] >= first
    closing = [threading.Thread(target=each.close) for each in hosts]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(60)
