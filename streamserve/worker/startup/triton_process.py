"""The process that fills Triton's cache: `python -m streamserve.worker.startup.triton_process`, started by `kernel_cache`.

Reads what it is told, and gets Triton ready beside importing torch, which `precompile` does.
"""

from __future__ import annotations

import os
import sys
import threading

from streamserve.process.child import decode_with_paths
from streamserve.worker.startup.triton_cache import Aim, Order, prepare_triton


def main() -> int:
    """Compile what the two lines on stdin order; the exit status is 1 when a part failed."""
    order = decode_with_paths(sys.stdin.buffer.readline(), Order)
    preparing = threading.Thread(target=prepare_triton)
    preparing.start()
    # Here and not at the top: this imports torch.
    from streamserve.worker.startup.triton_compilation import compile_order

    line = sys.stdin.buffer.readline()
    # No other thread may run when this process forks.
    preparing.join()
    return compile_order(order, decode_with_paths(line, Aim)) if line else 0


if __name__ == "__main__":
    # Not sys.exit: the rank waits, and to take torch down properly takes a while.
    os._exit(main())
