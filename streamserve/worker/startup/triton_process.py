"""The process that fills Triton's cache: `python -m streamserve.worker.startup.triton_process`, started by `triton_cache`.

Reads a `CompileJob` and a `CompileTarget` from stdin, and prepares Triton on a thread while torch is imported.
"""

from __future__ import annotations

import os
import sys
import threading

from streamserve.process.child import decode_with_paths
from streamserve.worker.startup.triton_cache import CompileJob, CompileTarget, prepare_triton


def main() -> int:
    """Compile the job and target read from stdin; the exit status is 1 when a part failed."""
    job = decode_with_paths(sys.stdin.buffer.readline(), CompileJob)
    preparing = threading.Thread(target=prepare_triton)
    preparing.start()
    # Here and not at the top: this imports torch.
    from streamserve.worker.startup.triton_compilation import compile_job

    line = sys.stdin.buffer.readline()
    # No other thread may run when this process forks.
    preparing.join()
    return compile_job(job, decode_with_paths(line, CompileTarget)) if line else 0


if __name__ == "__main__":
    # Not sys.exit: the rank waits, and to take torch down properly takes a while.
    os._exit(main())
