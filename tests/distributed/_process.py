"""One of several processes, usually without JAX's runtime: _process.py CASE COORDINATOR COUNT INDEX [FACT]."""

import sys
import time

from rlcls._errors import UserError, command
from rlcls.distributed import compare, joined

case, coordinator, count, index, *fact = sys.argv[1:]
options = {"coordinator": coordinator, "num_processes": int(count), "process_id": int(index), "timeout": 4}


def main(argv):
    try:
        return run()
    finally:
        if case == "mistake" and index == "1":
            time.sleep(1)  # the others end before this process closes its connections


def run():
    with joined(
        options, {"agent": {"learning_rate": fact[0] if fact else "0.1"}}, runtime=case == "runtime"
    ) as hosts:
        print("joined", flush=True)
        if case == "values":
            for number in range(200):
                assert hosts.gather([hosts.index, number]) == [[each, number] for each in range(hosts.count)]
            assert hosts.broadcast("x" * 3_000_000 if hosts.index == 0 else None) == "x" * 3_000_000
        if case == "compare":
            compare(hosts, {"env": {"game": "Pong", "frame_skip": 4}})
            compare(hosts, {"env": {"game": "Pong", "frame_skip": 4 + hosts.index // 2}})
        if case in ("wait", "flood", "runtime"):
            hosts.gather(None)
            print("waiting", flush=True)
        while case == "flood":
            hosts.broadcast("x" * 5_000_000)
        if case in ("wait", "runtime"):
            time.sleep(60)
        if case == "mistake" and hosts.index == 1:
            raise UserError("the disk is full")
        if case == "fault" and hosts.index == 1:
            raise RuntimeError("a bug")
        if case in ("mistake", "fault"):
            time.sleep(60)
        if case == "early" and hosts.index == 0:
            hosts.gather(None)
            time.sleep(1.5)  # the others reach the end first
        elif case == "early":
            hosts.gather(None)
        if case == "stop":
            for number in range(10_000):
                hosts_ask = hosts.index == hosts.count - 1 and number == 20
                if hosts_ask:
                    hosts.ask_stop()
                time.sleep(0.0005 * (hosts.index + 1))
                if number % 3 == 0:  # like a collective, it keeps all processes within a few steps
                    hosts.gather(None)
                if hosts.stops(asked=False):
                    break
            print("stopped", number, len(set(hosts.gather(number))), flush=True)
    return 0


sys.exit(command(main, []))
