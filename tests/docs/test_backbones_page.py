"""The sizes that docs/backbones.md prints are those of the networks."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rlcls import heads, networks
from rlcls.cli.build import build
from rlcls.cli.compose import compose
from rlcls.cli.help import choices

PAGE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, flags=re.M)
ATARI = (4, 84, 84)


def test_every_backbone_for_pictures_has_a_row():
    assert {row[0] for row in ROWS} == set(choices("backbone")) - {"mlp", "minatar", "states"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_what_the_network_counts(row):
    name, *numbers = row
    override = ["backbone.vocabulary=null"] if name.startswith("transformer_") else []
    make = build(compose([f"backbone={name}", *override]), "backbone")
    network = nnx.eval_shape(lambda: make(ATARI, rngs=nnx.Rngs(0)))
    apply, params, state = networks.functional(network)
    flops = networks.count_flops(
        lambda params, x: apply(params, state, x, train=False)[0],
        params,
        jax.ShapeDtypeStruct((1, *ATARI), jnp.uint8),
    )
    count, features = networks.count_parameters(params), network.num_features
    whole = count + (features + 1) * 18 * 51
    assert [f"{number:,}" for number in (count, features, whole, round(flops / 1e6))] == numbers


def count(make):
    return networks.count_parameters(nnx.state(nnx.eval_shape(make), nnx.Param))


@pytest.mark.parametrize(
    ("depth", "published"), re.findall(r"ResNet-(\d+)[^|]*\| ([\d,]+ / [\d,]+) \| \d+M \|", PAGE)
)
def test_the_sizes_for_many_games_are_counted(depth, published):
    def make(form):
        rngs = nnx.Rngs(0)
        head = heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51)
        body = networks.ResNet(ATARI, depth=int(depth), rngs=rngs)
        return networks.MultiGameQNetwork(body, head, 18, 40, form=form, rngs=rngs)

    counts = (count(functools.partial(make, form)) for form in ("heads", "embedding"))
    assert " / ".join(f"{number:,}" for number in counts) == published


@pytest.mark.parametrize(
    ("layers", "width", "published"), re.findall(r"(\d+) layers of ([\d,]+)[^|]*\| ([\d,]+) \| \d+M \|", PAGE)
)
def test_the_sizes_for_chess_are_counted(layers, width, published):
    def make():
        rngs, size = nnx.Rngs(0), int(width.replace(",", ""))
        body = networks.Transformer((79,), layers=int(layers), width=size, vocabulary=1968, rngs=rngs)
        return networks.QNetwork(body, heads.make("hlgauss", vmin=0, vmax=1, num_bins=128), 1, rngs=rngs)

    assert f"{count(make):,}" == published
