"""`python -m streamserve.entrypoints.openai.run_batch …`: `streamserve run-batch …`, as vLLM's documentation types it."""

import sys

from streamserve.cli import main

if __name__ == "__main__":
    main(["run-batch", *sys.argv[1:]])
