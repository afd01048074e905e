"""`python -m streamserve` is the command `streamserve`."""

from streamserve.cli import main

main()
