"""The processes of a run, connected to process 0."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .messages import Closed, Link

DIED = 75
"""The exit code after the death of another process (EX_TEMPFAIL). A launcher then starts all processes again."""
_PING = 1.0  # seconds between two signs of life
_SILENCE = 5  # a process counts as dead after this many missing signs of life
_LAST_WORDS = 0.3  # seconds before the exit, for telling the other processes and for flushing the output
_AHEAD = 2  # the first proposed call of `stops` is this many after the newest call of process 0


class Connected:
    """`Hosts` for several processes. Each has one connection, to process 0, which forwards messages to the others.

    Separate threads read the connections and send signs of life, so a process is not taken for dead while it compiles
    or evaluates. When a process dies, freezes or fails, every other one prints a line and ends at once by `os._exit`,
    because its main thread may be in a collective that never ends.

    *Stopping.* All processes must stop at the same call of `stops`. The reading threads agree on it, because a main
    thread that waits in a collective cannot answer:

    1. Process 0 proposes that all stop at call S.
    2. A process that has made fewer than S calls promises to stop at S. Any other answers with its number of calls.
    3. After such an answer process 0 proposes a later call. Each proposal is twice as far ahead as the one before,
       because processes that do not wait for each other make calls while the messages travel.
    4. Once all have promised, S is settled, and process 0 tells the others.

    A main thread that arrives at call S earlier waits until S is settled. The others can still arrive at S, because
    calls are made between steps: this process has already dispatched its part of every collective before S. Messages of
    several threads may overtake each other, so only the latest proposal counts.

    Args:
      index: the number of this process.
      names: the host of each process.
      links: on process 0 the connection to each other process, by its number; on others the one to process 0.
    """

    def __init__(self, index: int, names: Sequence[str], links: dict[int, Link]):
        self.index, self.count = index, len(names)
        self._names, self._links = list(names), links
        self._change = threading.Condition()
        self._gathered = 0  # calls of `gather` so far
        self._parts: dict[int, dict[int, Any]] = {}  # for each unfinished `gather`, the values by process
        self._results: dict[int, list[Any]] = {}
        self._calls = 0  # calls of `stops` so far
        self._stop_at: int | None = None  # the call at which this process has promised to stop
        self._settled = False
        self._requests: queue.SimpleQueue[None] = queue.SimpleQueue()  # requests of this process to stop
        self._promised: set[int] = set()  # on process 0, the processes that promised the latest proposal
        self._proposed, self._ahead = 0, _AHEAD
        self._ended: set[int] = set()  # processes that have said goodbye
        self._closing = False
        self._is_ending = threading.Lock()
        for other, link in links.items():
            self._start(self._listen, other, link)
        self._start(self._ping)
        self._start(self._watch)
        self._start(self._pass_on_request)

    def gather(self, value: Any) -> list[Any]:
        """See `Hosts.gather`."""
        number = self._gathered
        self._gathered += 1
        if self.index:
            self._send(0, "part", number=number, value=value)
        else:
            self._take_part(0, number, value)
        with self._change:
            self._change.wait_for(lambda: number in self._results)
            return self._results.pop(number)

    def broadcast(self, value: Any) -> Any:
        """See `Hosts.broadcast`."""
        return self.gather(value if self.index == 0 else None)[0]

    def stops(self, *, asked: bool) -> bool:
        """See `Hosts.stops`."""
        if asked:
            self.ask_stop()
        with self._change:
            self._calls += 1
            if self._stop_at is None or self._calls < self._stop_at:
                return False
            self._change.wait_for(lambda: self._settled or self._calls < (self._stop_at or 0))
            return self._settled and self._calls >= self._stop_at

    def ask_stop(self) -> None:
        """See `Hosts.ask_stop`."""
        # A thread sends the request, because a signal handler may interrupt a `send` of the main thread. The handler
        # may call SimpleQueue.put at any time.
        self._requests.put(None)

    @property
    def stop_asked(self) -> bool:
        """See `Hosts.stop_asked`."""
        return self._stop_at is not None

    def fail(self, reason: str, code: int) -> None:
        """Tells the other processes that this one failed. They end with `code`."""
        # The other processes now close their connections, which this process must not report as deaths.
        self._closing = True
        self._tell(list(self._links), self.index, f"failed: {reason}", code)

    def close(self) -> None:
        """Closes the connections once all processes have called it."""
        self.gather(None)
        self._closing = True
        for link in self._links.values():
            with contextlib.suppress(Closed):
                link.send("bye")
        # Process 0 waits for the goodbye of the others, because they would take its end for a death.
        with self._change:
            self._change.wait_for(lambda: len(self._ended) == len(self._links), timeout=_SILENCE * _PING)
        for link in self._links.values():
            link.close()

    def _start(self, function: Callable[..., object], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, name="hosts", daemon=True)
        thread.start()
        return thread

    def _send(self, other: int, kind: str, **values: Any) -> None:
        # A closed connection is ignored here, because the thread that listens to it ends this process.
        with contextlib.suppress(Closed):
            self._links[other].send(kind, **values)

    def _listen(self, other: int, link: Link) -> None:
        try:
            while True:
                self._take(other, link.receive())
        except Closed:
            if not (self._closing or other in self._ended):
                self._end(other, "died (its connection closed)", DIED)

    def _pass_on_request(self) -> None:
        self._requests.get()
        if self.index:
            self._send(0, "ask")
        else:
            self._propose(0)

    def _ping(self) -> None:
        while not self._closing:
            for other in self._links:
                self._send(other, "ping")
            time.sleep(_PING)

    def _watch(self) -> None:
        # `_ping` does not do this, because sending to a frozen process can block. Silence is counted in turns of this
        # loop and not in seconds, because after a pause of this machine, messages sent during the pause are unread.
        heard = dict.fromkeys(self._links, 0.0)
        looks = dict.fromkeys(self._links, 0)
        while not self._closing:
            for other, link in self._links.items():
                looks[other] = looks[other] + 1 if link.heard == heard[other] else 0
                heard[other] = link.heard
                if looks[other] >= _SILENCE and other not in self._ended:
                    silence = time.monotonic() - link.heard
                    self._end(other, f"has given no sign of life for {silence:.0f} s", DIED)
            time.sleep(_PING)

    def _take(self, other: int, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "part":
            self._take_part(other, message["number"], message["value"])
        elif kind == "result":
            self._take_result(message["number"], message["values"])
        elif kind == "ask":
            self._propose(0)
        elif kind == "proposal":
            self._send(0, "answer", call=message["call"], calls=self._promise(message["call"]))
        elif kind == "answer":
            self._take_answer(other, message["call"], message["calls"])
        elif kind == "settled":
            self._settle(message["call"])
        elif kind == "end":
            self._end(message["process"], message["what"], message["code"])
        elif kind == "bye":
            with self._change:
                self._ended.add(other)
                self._change.notify_all()

    def _take_part(self, other: int, number: int, value: Any) -> None:
        with self._change:
            parts = self._parts.setdefault(number, {})
            parts[other] = value
            if len(parts) < self.count:
                return
            values = [parts[process] for process in range(self.count)]
            del self._parts[number]
        for each in self._links:
            self._send(each, "result", number=number, values=values)
        self._take_result(number, values)

    def _take_result(self, number: int, values: list[Any]) -> None:
        with self._change:
            self._results[number] = values
            self._change.notify_all()

    def _propose(self, least: int) -> None:
        """Proposes to stop at a call later than `least`, unless the latest proposal is already later."""
        with self._change:
            if self._proposed and least < self._proposed:
                return
            call = self._proposed = max(least, self._calls) + self._ahead
            self._ahead *= 2
            self._promised = set()
        for other in self._links:
            self._send(other, "proposal", call=call)
        self._take_answer(0, call, self._promise(call))

    def _promise(self, call: int) -> int | None:
        """Promises to stop at a call, and returns None; returns the number of calls so far if it has been made."""
        with self._change:
            if self._calls >= call:
                return self._calls
            self._stop_at = max(call, self._stop_at or 0)
            self._change.notify_all()
            return None

    def _take_answer(self, other: int, call: int, calls: int | None) -> None:
        with self._change:
            # A process that promised the latest proposal may answer an earlier one afterwards, from the call at which
            # it now waits. That refuses nothing.
            if call != self._proposed:
                return
            if calls is None:
                self._promised.add(other)
                if len(self._promised) < self.count:
                    return
        if calls is not None:
            self._propose(calls)
            return
        for each in self._links:
            self._send(each, "settled", call=call)
        self._settle(call)

    def _settle(self, call: int) -> None:
        with self._change:
            self._settled = self._stop_at == call
            self._change.notify_all()

    def _end(self, other: int, what: str, code: int) -> None:
        """Ends this process because another one ended. Process 0 also ends all others."""
        self._is_ending.acquire()  # never released, so that only the first reason is printed
        line = f"process {other} of {self.count} on {self._names[other]} {what}; this one ends with exit code {code}"
        with contextlib.suppress(OSError):
            os.write(2, f"error: {line}\n".encode())
        if self.index == 0:
            self._tell([each for each in self._links if each != other], other, what, code)
        _within(_LAST_WORDS, [self._start(sys.stdout.flush)])
        os._exit(code)

    def _tell(self, others: Sequence[int], process: int, what: str, code: int) -> None:
        """Tells other processes that one ended. A frozen one may accept no message, so the wait is short."""
        send = functools.partial(self._send, process=process, what=what, code=code)
        _within(_LAST_WORDS, [self._start(send, each, "end") for each in others])


def _within(seconds: float, threads: Sequence[threading.Thread]) -> None:
    """Waits for threads to end, at most `seconds` for all of them together."""
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
