"""A run continues and saves if its output cannot be written."""

import os
import sys

import pytest

from rlcls.runs.output import unread_is_dropped
from rlcls.train import main


def unread():
    """A stream whose reader has ended, as `head` does."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def full():
    """A stream to a file on a full disk."""
    return open("/dev/full", "w")


@pytest.mark.parametrize(("stream", "reason"), [(unread, "Broken pipe"), (full, "No space left on device")])
def test_output_that_cannot_be_written_is_dropped_with_one_note(stream, reason, monkeypatch, capsys):
    with stream() as output:  # closing it raises if anything could not be written
        monkeypatch.setattr(sys, "stdout", output)
        with unread_is_dropped():
            for _ in range(3):
                print("display", flush=True)
            print("x" * 100_000)
        assert sys.stdout is output
    assert capsys.readouterr().err == f"note: the output is dropped from now on ({reason})\n"


def test_a_command_whose_streams_both_fail_ends_as_it_would(monkeypatch):
    with unread() as output, unread() as errors:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stderr", errors)
        with unread_is_dropped():
            print("display", flush=True)
            print("note", file=sys.stderr, flush=True)


def test_output_that_is_read_is_unchanged(capsys):
    with unread_is_dropped():
        print("display", sys.stdout.isatty())
        print("note", file=sys.stderr)
    assert capsys.readouterr() == ("display False\n", "note\n")


def test_a_run_whose_output_nobody_reads_trains_to_its_end(tmp_path, monkeypatch):
    options = ["env=probe", "game=probe/policy", "backbone=mlp", "backbone.hidden=[8]", "env.num_envs=4"]
    options += ["steps=200", "replay.capacity=100", "replay.min_size=50", "training.batch_size=4"]
    options += ["eval.every=0", "logging.tensorboard=false"]
    with unread() as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main([*options, f"run_dir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run" / "checkpoints" / f"{200:012d}").exists()
