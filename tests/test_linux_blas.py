"""OpenBLAS behind MLX's products on Linux: the same numbers to rounding, whatever was imported first, and a way out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="MLX uses Accelerate elsewhere")

CODE = """
import mlx.core as mx, numpy as np
a, b = mx.random.normal((64, 512)), mx.random.normal((512, 640))
before = np.array(a @ b)
import moshi_mlx
from moshi_mlx.machine.cpu.linux_blas import use_openblas
used = use_openblas()
exact = np.array(a, np.float64) @ np.array(b, np.float64)
for x in (a @ b, mx.contiguous(a.T).T @ b, a @ mx.contiguous(b.T).T, mx.stack([a, a])[1] @ b):
    assert np.abs(np.array(x) - exact).max() < 1e-3
print(used, (before == np.array(a @ b)).all())
"""


def run(**env) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_products_are_right_and_may_be_left_alone():
    used, same = run(MOSHI_MLX_BLAS="mlx")
    assert (used, same) == ("False", "True")
    used, same = run()
    assert used == "True"
    assert same == "False", "the products did not go through OpenBLAS"


def test_without_the_package_nothing_happens(tmp_path):
    (tmp_path / "scipy_openblas32.py").write_text("raise ImportError")
    assert run(PYTHONPATH=str(tmp_path)) == ["False", "True"]
