"""`import rlcls.heads` loads jax, numpy and jaxtyping only."""

import subprocess
import sys

PROGRAM = """
import sys
import jax, jax.numpy, jaxtyping, numpy
before = set(sys.modules)
import rlcls.heads
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
rlcls.heads.make("hlgauss", vmin=-1, vmax=1, num_bins=5)
assert "flax" not in sys.modules and "jax.experimental.pallas" not in sys.modules
assert not hasattr(rlcls.heads, "torch")
rlcls.heads.nnx.QHead
assert "flax" in sys.modules
"""


def test_heads_load_only_jax_numpy_and_jaxtyping(pytestconfig):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["rlcls"]
