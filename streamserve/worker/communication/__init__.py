"""How the ranks of one model reach each other: gloo between processes on CPUs, NCCL between GPUs."""
