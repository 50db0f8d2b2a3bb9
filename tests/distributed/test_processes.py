"""Processes that meet, agree and end together."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlcls._errors import UserError
from rlcls.distributed.joining import Place, place

PROCESS = Path(__file__).with_name("_process.py")
PATH = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start():
    """Starts processes of a case. All are killed at the end of the test."""
    begun = []

    def start(case, count=2, indices=None, counts=None, facts=None, address=None):
        address = address or f"127.0.0.1:{free_port()}"
        for place_, index in enumerate(range(count) if indices is None else indices):
            number = counts[place_] if counts else count
            arguments = [case, address, str(number), str(index), *([facts[place_]] if facts else [])]
            command = [sys.executable, str(PROCESS), *arguments]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            begun.append(subprocess.Popen(command, env=os.environ | {"PYTHONPATH": PATH}, **pipes))
        return list(begun)

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def ends(processes, timeout=30):
    """(exit code, standard output, standard error) of each process."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize("count", [2, 4])
def test_values_are_gathered_in_the_order_of_the_processes(start, count):
    for code, _, errors in ends(start("values", count)):
        assert (code, errors) == (0, "")


def test_processes_meet_at_an_address_of_ipv6(start):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = probe.getsockname()[1]
    for code, _, errors in ends(start("values", address=f"[::1]:{port}")):
        assert (code, errors) == (0, "")


def test_environments_that_differ_are_named_by_every_process(start):
    for code, _, errors in ends(start("compare", 3)):
        assert code == 2
        assert "process 2 has env.frame_skip=5, and process 0 has env.frame_skip=4" in errors


@pytest.mark.parametrize("count", [2, 4])
def test_a_process_that_ends_before_the_others_does_not_count_as_dead(start, count):
    for code, _, errors in ends(start("early", count)):
        assert (code, errors) == (0, "")


@pytest.mark.parametrize("count", [2, 3])
def test_all_processes_stop_at_the_same_step_when_one_asks(start, count):
    lines = [output.splitlines()[-1].split() for code, output, _ in ends(start("stop", count))]
    assert {(word, different) for word, _, different in lines} == {("stopped", "1")}
    assert 20 <= int(lines[0][1]) < 60


def waiting(processes):
    for process in processes:
        for expected in ("joined\n", "waiting\n"):
            assert process.stdout.readline() == expected


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_others_end_within_a_second(start, victim):
    processes = start("wait", 3)
    waiting(processes)
    processes[victim].kill()
    begun = time.monotonic()
    results = ends(processes)
    assert time.monotonic() - begun < 1
    for index, (code, _, errors) in enumerate(results):
        if index != victim:
            assert code == 75
            what = rf"process {victim} of 3 on \S+ died \(its connection closed\); this one ends with exit code 75"
            assert re.fullmatch(f"error: {what}\n", errors)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_freezes_the_others_end_within_seven_seconds(start, victim):
    processes = start("wait", 2)
    waiting(processes)
    processes[victim].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    ((code, _, errors),) = ends([processes[1 - victim]])
    assert 4 < time.monotonic() - begun < 7
    assert code == 75 and f"process {victim} of 2 on" in errors and "has given no sign of life for" in errors
    processes[victim].send_signal(signal.SIGCONT)
    assert ends([processes[victim]])[0][0] == 75


def test_when_the_machine_pauses_no_process_counts_as_dead(start):
    processes = start("wait", 3)
    waiting(processes)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in processes:
            process.send_signal(number)
        time.sleep(7 if number == signal.SIGSTOP else 2)
    assert [process.poll() for process in processes] == [None] * 3


def test_frozen_processes_that_accept_no_message_do_not_delay_the_end_of_process_0(start):
    processes = start("flood", 3)
    waiting(processes)
    for process in processes[1:]:
        process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    ((code, _, errors),) = ends(processes[:1])
    assert time.monotonic() - begun < 7.5
    assert code == 75 and errors.count("has given no sign of life for") == 1


def test_a_signal_before_the_run_handles_signals_ends_all_processes(start):
    processes = start("runtime", 2)
    waiting(processes)
    processes[1].terminate()
    (first, _, errors), (second, _, _) = ends(processes)
    assert (first, second) == (75, -signal.SIGTERM) and "process 1 of 2 on" in errors


@pytest.mark.parametrize(
    ("case", "expected_code", "text"), [("mistake", 2, "the disk is full"), ("fault", 1, "a bug")]
)
def test_an_error_in_one_process_ends_all_and_all_print_its_reason(start, case, expected_code, text):
    results = ends(start(case, 3))
    assert [code for code, _, _ in results] == [expected_code] * 3
    assert results[1][2].splitlines()[-1].endswith(text) and "process" not in results[1][2].splitlines()[-1]
    for _, _, errors in (results[0], results[2]):
        assert errors.startswith("error: process 1 of 3 on ") and f"failed: {text}; this one ends" in errors


def only_error(errors):
    (line,) = {each.partition("error: ")[2] for each in errors}
    return line.rstrip("\n")


def test_a_process_that_does_not_join_is_named(start):
    results = ends(start("values", 3, indices=[0, 2]))
    assert {code for code, _, _ in results} == {2}
    assert re.fullmatch(
        r"process 1 of 3 did not come to 127.0.0.1:\d+ within 4 s", only_error(each[2] for each in results)
    )


def test_without_process_0_the_others_print_its_address(start):
    ((code, _, errors),) = ends(start("values", 2, indices=[1]))
    assert code == 2
    assert "process 1 finds no process 0 at distributed.coordinator=127.0.0.1:" in errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"indices": [0, 1, 1]}, r"two processes have distributed.process_id=1, on \S+ and on \S+"),
        (
            {"indices": [0, 1], "counts": [2, 3]},
            r"process 1 on \S+ was started as one of 3 processes, and process 0 as one of 2",
        ),
        (
            {"indices": [0, 1], "counts": [2, 2], "facts": ["0.1", "0.2"]},
            r"process 1 on \S+ has agent.learning_rate=0.2, and process 0 has agent.learning_rate=0.1",
        ),
    ],
)
def test_processes_that_do_not_belong_together_print_why_and_end(start, options, expected):
    results = ends(start("values", 3, **options))
    assert {code for code, _, _ in results} == {2}
    errors = {errors for _, _, errors in results if "the program there is not rlcls" not in errors}
    assert re.fullmatch(expected, only_error(errors))


def test_a_port_in_use_and_an_address_of_another_machine_are_one_line(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ((code, _, errors),) = ends(start("values", 2, indices=[0], address=address))
    assert (code, errors) == (2, f"error: distributed.coordinator={address}: the port is in use\n")
    ((code, _, errors),) = ends(start("values", 2, indices=[0], address="203.0.113.1:4000")[1:])
    assert code == 2 and errors.startswith("error: distributed.coordinator=203.0.113.1:4000: ")


def test_another_program_at_the_address_is_one_line(start):
    with socket.create_server(("127.0.0.1", 0)) as other:
        processes = start("values", 2, indices=[1], address=f"127.0.0.1:{other.getsockname()[1]}")
        other.settimeout(10)
        connection, _ = other.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        ((code, _, errors),) = ends(processes)
    assert code == 2 and "the program there is not rlcls, or it ended" in errors


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a"}, None),
        # a batch script, outside of srun
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "gpu[07-09],gpu12"}, None),
        (
            {
                "SLURM_NTASKS": "4",
                "SLURM_PROCID": "2",
                "SLURM_STEP_NODELIST": "gpu[07-09],gpu12",
                "SLURM_JOB_ID": "100",
                "SLURM_STEP_ID": "0",
                "SLURM_RESTART_COUNT": "1",
            },
            Place("gpu07:24248", 4, 2, 60),
        ),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (
            {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "10.0.0.2,10.0.0.3"},
            Place("10.0.0.2:29417", 2, 1, 60),
        ),
    ],
)
def test_slurm_and_tpu_slices_determine_the_place_of_a_process(environment, expected):
    assert place({}, environment) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"coordinator": "a:1"},
            "distributed.coordinator needs distributed.num_processes and distributed.process_id, too",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            r"distributed.process_id \(2\) must be from 0 to distributed.num_processes \(2\) - 1",
        ),
        (
            {"coordinator": "a", "num_processes": 2, "process_id": 0},
            "distributed.coordinator=a: expected host:port",
        ),
    ],
)
def test_incomplete_or_impossible_places_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        place(options, os.environ)
