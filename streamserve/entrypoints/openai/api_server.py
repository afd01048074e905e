"""`python -m streamserve.entrypoints.openai.api_server …`: `streamserve serve …`, as tutorials of vLLM's type it."""

import sys

from streamserve.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
