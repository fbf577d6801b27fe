"""Without a GPU, Triton kernels run in Triton's interpreter, which must be chosen before anything imports Triton."""

from __future__ import annotations

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"
