"""Makes `benchmarks/_chips.py`, which compiles for chips, importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
