"""Heads by name, and the errors for a wrong name or option."""

import pytest

from rlcls import heads

RANGE = {"vmin": -10, "vmax": 10, "num_bins": 51}


def test_each_head_has_the_grid_of_its_paper():
    assert heads.make("hlgauss", **RANGE) == heads.HLGauss(
        heads.Support.uniform(-10, 10, 51), sigma_ratio=0.75
    )
    for name, kind in (("two_hot", heads.TwoHot), ("c51", heads.C51)):
        assert heads.make(name, **RANGE) == kind(heads.Support.uniform(-10, 10, 51, on="centers"))
    assert heads.make("huber") == heads.Huber(delta=1.0)
    assert heads.make("hlgauss", **RANGE).projection.sigma == pytest.approx(0.294118, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "hlgaus",
            RANGE,
            ValueError,
            "unknown loss 'hlgaus'; did you mean 'hlgauss'? "
            "(bce, c51, hlgauss, huber, mse, mse_softmax, one_hot, quantile, two_hot)",
        ),
        (
            "hlgauss",
            RANGE | {"sigma_ration": 1},
            TypeError,
            "loss 'hlgauss' takes no option 'sigma_ration'; did you mean 'sigma_ratio'? "
            "(bin_transform, criterion, implementation, label_smoothing, num_bins, on, points, q, "
            "scalar_transform, sigma, sigma_ratio, vmax, vmin)",
        ),
        ("mse", {"delta": 1}, TypeError, "loss 'mse' takes no option 'delta'"),
        ("c51", {"vmin": -10}, TypeError, "loss 'c51' needs vmax, num_bins"),
        (
            "hlgauss",
            RANGE | {"sigma_ratio": 0},
            ValueError,
            "hlgauss: sigma_ratio must be positive, not 0",
        ),
        (
            "hlgauss",
            RANGE | {"sigma_ratio": "wide"},
            TypeError,
            "hlgauss: sigma_ratio must be a number, not 'wide'",
        ),
        ("huber", {"delta": -1.0}, ValueError, "huber: delta must be positive, not -1.0"),
    ],
)
@pytest.mark.untyped
def test_a_wrong_request_is_refused_in_one_line(name, options, error, message):
    with pytest.raises(error) as raised:
        heads.make(name, **options)
    assert str(raised.value) == message
