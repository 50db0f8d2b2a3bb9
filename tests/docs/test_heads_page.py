"""The figures on the page about heads are what the heads do."""

import re
from pathlib import Path

import numpy as np
import pytest

from rlcls import heads

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "heads.md").read_text()
SUPPORT = heads.Support.uniform(-10, 10, 51)


def entropy(probs):
    return -np.sum(probs * np.log(np.where(probs > 0, probs, 1)), -1)


def test_the_table_of_the_bias_at_the_edges():
    header, rows = re.search(r"\| sigma_ratio \|(.*)\|\n\|.*\n((?:\|.*\n)+)", PAGE).groups()
    distances = np.array([float(cell) for cell in header.split("|")])
    for row in rows.splitlines():
        ratio, *biases = (float(cell) for cell in row.strip("|").split("|"))
        head = heads.HLGauss(SUPPORT, sigma_ratio=ratio)
        targets = 10 - distances * ratio * SUPPORT.width
        found = (head.decode(head.encode(targets)) - targets) / SUPPORT.width
        np.testing.assert_allclose(found, biases, atol=5.1e-4)


@pytest.mark.parametrize(("ratio", "most"), [(0.25, 0.095), (0.5, 0.0023), (0.75, 1e-5), (1.0, 1e-5)])
def test_the_bias_away_from_the_edges(ratio, most):
    head, targets = heads.HLGauss(SUPPORT, sigma_ratio=ratio), np.linspace(-1, 1, 999)
    bias = np.abs(head.decode(head.encode(targets)) - targets).max() / SUPPORT.width
    assert bias <= most
    assert ratio > 0.5 or bias > 0.9 * most


@pytest.mark.parametrize(("ratio", "floor"), [(0.5, 0.87), (0.75, 1.20), (2.0, 2.12)])
def test_the_floor_of_the_cross_entropy(ratio, floor):
    for num_bins in (51, 255):
        support = heads.Support.uniform(-10, 10, num_bins)
        probs = heads.HLGauss(support, sigma_ratio=ratio).encode(np.linspace(-1, 1, 99))
        np.testing.assert_allclose(entropy(probs), floor, atol=0.011)


def test_the_floor_of_two_hot_depends_on_where_in_a_bin_the_target_falls():
    probs = heads.make("two_hot", vmin=-10, vmax=10, num_bins=51).encode(np.linspace(0, 0.4, 1001))
    assert entropy(probs).min() < 1e-6
    np.testing.assert_allclose(entropy(probs).max(), 0.69, atol=0.005)


@pytest.mark.parametrize("name", heads.BY_NAME)
def test_every_head_is_on_the_page_with_its_picture(name):
    assert f"`{name}`" in PAGE
    assert f"](heads/{name}.png)" in PAGE


def test_the_names_of_the_library_on_the_page_are_there():
    for name in re.findall(r"(?<!/)heads\.(\w+)", PAGE):  # files follow a slash
        assert hasattr(heads, name), name
    for owner, name in re.findall(r"\b(head|support)\.(?!py\b)(\w+)", PAGE):
        assert hasattr(heads.HLGauss(SUPPORT) if owner == "head" else SUPPORT, name), name
