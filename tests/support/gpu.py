"""Tests that have a form for a GPU: all are marked `gpu`, and `python -m pytest -m gpu` runs them where there is one.

Where the same work can run on a CPU it does, on `DEVICE`; what only a GPU can do is marked `NEEDS_GPU` as well.
"""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEEDS_GPU = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
