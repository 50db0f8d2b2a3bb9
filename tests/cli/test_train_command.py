"""A command that cannot do what it is asked for prints one line and writes nothing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlcls._errors import command
from rlcls.train import main

ROOT = Path(__file__).parents[2]


def start(*argv, cwd):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.Popen(
        [sys.executable, "-m", "rlcls.train", *argv],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def train(*argv, cwd):
    process = start(*argv, cwd=cwd)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["loss=hlgaus"],
            "unknown loss 'hlgaus'; did you mean 'hlgauss'?"
            " (bce, c51, hlgauss, huber, mse, mse_softmax, one_hot, quantile, two_hot)",
        ),
        (["sede=1"], "unknown option 'sede'; did you mean 'seed'? (--help lists them all)"),
        (["foo"], "cannot read 'foo'; options are written name=value, such as seed=1"),
        (
            ["--hepl"],
            "unknown flag '--hepl'; did you mean '--help'? (--config, --config-file, --help, --multirun)",
        ),
        (["--multirun", "seed=0,1", "loss=mse,hlgaus"], "unknown loss 'hlgaus'; did you mean 'hlgauss'?"),
        (["game=Pnog"], "unknown game 'Pnog'; did you mean 'Pong'?"),
        (
            ["env=gymnasium", "env.id=Pendulum-v1"],
            "agent: DQN needs one discrete action at a time, not float32 [1]",
        ),
        (
            ["env=gymnasium", "env.id=CartPol-v1"],
            "unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'?",
        ),
        (["env.protocol=atary"], "unknown protocol 'atary'; did you mean 'atari100k'?"),
        (["env.protocol=dopmine"], "unknown protocol 'dopmine'; did you mean 'dopamine'?"),
        (["loss._target_=no_such_package.Head"], "loss._target_=no_such_package.Head: No module named"),
        (["loss._target_=fractions.Fraction", "+loss.foo=1"], "loss.foo: fractions.Fraction takes no 'foo'"),
        (["game=Joust"], "game 'Joust' needs two players"),
        (
            ["env=probe", "game=probe/policy"],
            "backbone: DataEfficient takes observations of shape (frames, height, width), at least 25 high and "
            "wide, not (1,); backbone=mlp or backbone=states takes vectors\n",
        ),
    ],
)
def test_a_mistake_ends_with_2_one_line_and_nothing_written(argv, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {line}")
    assert len(shown.err.splitlines()) == 1 and shown.out == ""
    assert not list(tmp_path.iterdir())


def test_a_process_with_a_mistake_exits_with_2(tmp_path):
    done = train("game=Pnog", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown game 'Pnog'; did you mean 'Pong'?")
    assert not list(tmp_path.iterdir())


def test_help_and_config_are_printed_and_nothing_is_written(tmp_path):
    shown = train("--help", cwd=tmp_path)
    assert shown.returncode == 0 and "usage: python -m rlcls.train" in shown.stdout and shown.stderr == ""
    shown = train("--config", "loss=mse", cwd=tmp_path)
    assert shown.returncode == 0 and "name: mse" in shown.stdout and shown.stderr == ""
    shown = train("--config", "--multirun", "loss=mse,huber", cwd=tmp_path)
    assert shown.returncode == 0 and [*yaml.safe_load_all(shown.stdout)][1]["loss"]["name"] == "huber"
    assert not list(tmp_path.iterdir())


def test_a_reader_that_closes_the_output_ends_a_command_quietly(tmp_path):
    process = start("--help", cwd=tmp_path)
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == ""
    assert process.wait() == 141


@pytest.mark.parametrize(
    ("stream", "code", "line"),
    [
        ("full", 2, "error: cannot write to the standard output: No space left on device\n"),
        ("closed", 0, ""),
        ("latin-1", 0, ""),
    ],
)
def test_whatever_the_standard_output_is_an_error_is_at_most_one_line(
    stream, code, line, tmp_path, monkeypatch, capfd
):
    """The standard output of this process is like that of a shell's `>/dev/full` and `>&-`."""
    output = {
        "full": lambda: open("/dev/full", "w"),  # noqa: SIM115
        "closed": lambda: None,
        "latin-1": lambda: open(tmp_path / "out", "w", encoding="latin-1"),  # noqa: SIM115
    }[stream]()
    monkeypatch.setattr("sys.stdout", output)

    def run(argv):
        print("π", flush=True)
        return 0

    descriptor = os.dup(output.fileno()) if output else None
    assert command(run, []) == code
    if descriptor:
        os.close(descriptor)
    assert capfd.readouterr().err == line
    if stream == "latin-1":
        assert (tmp_path / "out").read_text() == "\\u03c0\n"


def test_a_working_directory_that_was_deleted_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["env=probe"]) == 2
    assert (
        capsys.readouterr().err == "error: the working directory does not exist any more; change to another\n"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            "error: Too many open files; ulimit -n sets how many a process may open",
        ),
        (MemoryError("Unable to allocate 7 TiB"), "error: not enough memory: Unable to allocate 7 TiB"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nallocator"),
            "error: not enough memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.",
        ),
    ],
)
def test_too_little_memory_and_too_few_files_are_one_line(error, line, capsys):
    def run(argv):
        raise error

    assert command(run, []) == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_another_error_is_not_reported_as_a_lack_of_memory():
    def run(argv):
        raise RuntimeError("send was called twice without recv")

    with pytest.raises(RuntimeError, match="twice"):
        command(run, [])


def test_another_broken_pipe_than_that_of_the_output_raises():
    def run(argv):
        raise BrokenPipeError("the encoder's")

    with pytest.raises(BrokenPipeError, match="the encoder's"):
        command(run, [])
