"""Counts how often intervals of few seeds contain the truth, with and without `rlcls.statistics.interval`'s widening.

    python benchmarks/interval_coverage.py

1,500 experiments of normal scores for each number of seeds and tasks, about a minute on one core.
"""

import _report
import numpy as np

from rlcls import statistics

EXPERIMENTS, RESAMPLES = 1500, 400


def main() -> None:
    """The command."""
    facts, results = _report.machine(), []
    for seeds, tasks in ((3, 1), (5, 1), (10, 1), (3, 5), (5, 5), (10, 5)):
        random = np.random.default_rng(1)
        truth = statistics.iqm(random.normal(1.0, 0.2, (20_000, seeds, tasks))).mean()
        widened, plain = [], []
        for experiment in range(EXPERIMENTS):
            scores = random.normal(1.0, 0.2, (seeds, tasks))
            low, high = statistics.interval(scores, seed=experiment, resamples=RESAMPLES)
            widened.append(low <= truth <= high)
            rows = np.random.default_rng(experiment).integers(seeds, size=(RESAMPLES, seeds, tasks))
            resampled = statistics.iqm(np.take_along_axis(scores[None], rows, axis=1))
            low, high = np.quantile(resampled, [0.025, 0.975])
            plain.append(low <= truth <= high)
        results.append({"seeds": seeds, "tasks": tasks, "widened": np.mean(widened), "plain": np.mean(plain)})
    rows = [
        [each["seeds"], each["tasks"], f"{each['widened']:.3f}", f"{each['plain']:.3f}"] for each in results
    ]
    text = _report.table(["seeds", "tasks", "rlcls.statistics", "percentiles alone"], rows)
    text = f"# Coverage of nominal 95 % intervals of the IQM\n\n{_report.describe(facts)}\n\n{text}"
    _report.write("interval_coverage", {"machine": facts, "coverage": results}, text)


if __name__ == "__main__":
    main()
