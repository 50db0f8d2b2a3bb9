"""The examples learn and are short. The examples of heads import only rlcls.heads."""

import ast
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WHOLE = ("nnx_steps_to_success", "online_dqn")  # these also use recordings and loops
OF_HEADS = [example for example in EXAMPLES if example.stem not in WHOLE]


def load(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("example", OF_HEADS, ids=lambda path: path.stem)
def test_an_example_is_short_and_imports_the_heads_only(example):
    text = example.read_text()
    assert len(text.splitlines()) < 200
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "rlcls":
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name.split(".")[0] == "rlcls"}
    assert imported == {"rlcls.heads"}


@pytest.mark.parametrize("loss", ["hlgauss", "c51"])
def test_the_haiku_agent_learns_to_catch(loss, monkeypatch, capsys):
    result = load("haiku_rlax_dqn", monkeypatch).main([f"--loss={loss}", "--steps=6000"])
    assert result > 0.5  # chance is about -0.6
    assert f"{loss}: mean return +" in capsys.readouterr().out


def test_the_linen_agent_learns_to_balance_a_pole(monkeypatch, capsys):
    result = load("linen_dqn", monkeypatch).main(["--steps=12000"])
    assert result > 100  # chance is about 22
    assert "hlgauss: mean return " in capsys.readouterr().out


def test_every_head_fits_the_values_behind_noisy_returns(monkeypatch, capsys):
    errors = load("optax_value_regression", monkeypatch).main(["--steps=500"])
    assert {"mse", "hlgauss"} <= set(errors)
    assert np.max(list(errors.values())) < 0.6  # the values' own spread is 3.2
    assert "hlgauss" in capsys.readouterr().out


def test_a_value_function_of_steps_to_success_explains_the_returns(monkeypatch, capsys):
    results = load("nnx_steps_to_success", monkeypatch).main(["--episodes=400", "--updates=300"])
    assert results["explained_variance"] > 0.7
    assert results["cross_entropy"] < 0.7 * results["marginal_cross_entropy"]
    assert "explained_variance" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("target", ["one_hot", "two_hot", "hlgauss"])
def test_a_value_function_explains_nine_tenths_of_the_variance_of_held_out_returns(target, monkeypatch):
    results = load("nnx_steps_to_success", monkeypatch).main([f"--target={target}"])
    assert results["explained_variance"] > 0.9
    assert results["cross_entropy"] < 0.6 * results["marginal_cross_entropy"]


def test_a_loop_advanced_from_python_learns_the_exact_values(monkeypatch, capsys):
    assert load("online_dqn", monkeypatch).main() < 0.1
    assert "exact [[1.0, -1.0], [-1.0, 1.0]]" in capsys.readouterr().out
