"""`rlcls COMMAND` is `python -m rlcls.COMMAND`, and `rlcls games` lists the games."""

import sys

import pytest

import rlcls
from rlcls import __main__ as commands
from rlcls import games, train
from rlcls.envs import atari


@pytest.fixture
def call(monkeypatch):
    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["rlcls", *argv])
        return commands.main()

    return call


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(argv, call, capsys):
    assert call(*argv) == 0
    text = capsys.readouterr().out
    assert all(
        f"\n  {name} " in text for name in ("train", "evaluate", "plot", "collect", "datasets", "games")
    )


def test_the_version_is_the_packages(call, capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"rlcls {rlcls.__version__}\n"
    assert train.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlcls {rlcls.__version__}\n"


def test_an_unknown_command_is_one_line_with_the_nearest(call, capsys):
    assert call("trian") == 2
    names = "collect, compare, compile, datasets, evaluate, games, launch, plot, train"
    message = f"error: unknown command 'trian'; did you mean 'train'? ({names})\n"
    assert capsys.readouterr().err == message


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", ["evaluate", "plot", "compare", "collect", "games"])
def test_a_command_gets_its_arguments_and_ends_with_its_exit_code(name, call, capsys):
    with pytest.raises(SystemExit) as ended:
        call(name, "--help")
    assert ended.value.code == 0 and f"usage: python -m rlcls.{name}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        call(name, "--hepl")
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: unknown option '--hepl'")


def test_games_and_protocols_are_listed_with_one_on_a_line(capsys):
    assert games.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "games (game=):"
    assert lines[1 : len(atari.games()) + 1] == [f"  {name}" for name in atari.games()] and "  Pong" in lines
    assert lines[-len(atari.PROTOCOLS) - 1] == "protocols (env.protocol=):"
    assert {line.strip().partition(":")[0] for line in lines[-len(atari.PROTOCOLS) :]} == set(atari.PROTOCOLS)


def test_only_games_with_the_text_in_their_names_are_listed(capsys):
    assert games.main(["pong"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == ["games (game=):", "  Pong", ""]
    assert games.main(["nosuchgame"]) == 2
    assert capsys.readouterr().err == "error: no game has 'nosuchgame' in its name\n"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_commands_for_data_sets_are_listed_too(call, capsys):
    with pytest.raises(SystemExit) as ended:
        call("datasets", "inspekt")
    assert ended.value.code == 2 and "did you mean 'inspect'?" in capsys.readouterr().err
