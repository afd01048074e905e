"""How long threads of a process hold the interpreter; for processes of our own, and hosts that ask for it."""

from __future__ import annotations

import sys

SWITCH_S = 0.0005
"""How long a thread may hold the interpreter while another wants it; 5 ms by default.

An event loop wants it back after every wait, and a GPU's step is launched in less time than that. On a CPU the launch thread
holds the interpreter through every compiled layer, while others want to hand on the tokens of the step before.
"""


def shorten_switch_interval() -> None:
    """Have threads give the interpreter up to others that wait for it after `SWITCH_S`, at most."""
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
