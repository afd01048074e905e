"""Times what GPUs of one machine exchange: `python benchmarks/gpu_exchange.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

if __name__ == "__main__":
    from benchmarks.gpu.exchange import main

    sys.exit(main())
