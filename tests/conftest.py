"""What must be in the environment before anything imports torch or Triton."""

from __future__ import annotations

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # without a GPU, kernels run in Triton's interpreter

# Two files of tests run at a time, and threads of both that wait for each other on two cores take five times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
