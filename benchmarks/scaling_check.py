"""Holds the simulation against real engines: `python benchmarks/scaling_check.py --json out.json`.

Starts two engine processes on devices whose steps last what those of Qwen3-8B on one H200 do, five times over, sends them the
conversations of a scenario through the server's router, and simulates the same scenario. Takes two minutes and hardly any
processor time. With --demo, two engines run the demo model on this machine's CPUs behind HTTP: their steps are measured before
and after, and the prediction is as good as the machine is steady.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPLICAS = 2
DEMO_ROWS = 16


def main() -> None:
    """Measure and simulate one scenario, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=110.0, help="of conversations, the first quarter of which does not count"
    )
    parser.add_argument("--rate", type=float, default=1.6, help="conversations that begin a second, on timed devices")
    parser.add_argument("--demo", action="store_true", help="the demo model on CPUs, behind HTTP")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    # The checkout need not be installed, nor for the engines.
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    rows = on_cpus(arguments.seconds) if arguments.demo else on_timed_devices(arguments.seconds, arguments.rate)
    print(json.dumps(rows, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def on_timed_devices(seconds: float, rate: float) -> dict[str, Any]:
    """Real engines and router, devices that only take time."""
    from benchmarks.scaling.requests import CHAT
    from benchmarks.scaling.simulation import Scenario, simulate
    from benchmarks.scaling.step_time import read_calibrations
    from benchmarks.scaling.studies import Row
    from benchmarks.scaling.timed_executor import slowed
    from benchmarks.scaling.timed_replicas import serve

    scenario = Scenario(
        calibration=slowed(read_calibrations()["8B, one H200"]),
        num_replicas=REPLICAS,
        traffic=CHAT,
        rate=rate,
        duration_s=seconds,
        warmup_s=seconds / 4,
    )
    outcomes = {"simulated": simulate(scenario), "measured": asyncio.run(serve(scenario))}
    return {name: Row(name, rate, outcome).figures for name, outcome in outcomes.items()}


def on_cpus(seconds: float) -> dict[str, Any]:
    """Two engines of the demo model with a thread each, requests that share a beginning."""
    import msgspec

    from benchmarks.scaling.real_replicas import RealReplicas, mean_of
    from benchmarks.scaling.replica import Limits
    from benchmarks.scaling.requests import Lengths, Traffic
    from benchmarks.scaling.simulation import Scenario, simulate
    from benchmarks.scaling.studies import Row
    from streamserve.process.server_process import ServerProcess, free_port

    os.environ["OMP_NUM_THREADS"] = "1"
    prompts, answers = Lengths(24, most=64), Lengths(32, most=96)
    traffic = Traffic(num_applications=6, system_tokens=192, mean_turns=1, user_tokens=prompts, output_tokens=answers)
    port = free_port()
    options = f"--port {port} --dtype float32 --max-model-len 1024 --max-num-seqs {DEMO_ROWS} --kv-cache-memory 512M"
    command = [sys.executable, "-m", "streamserve", "serve", "demo", "-dp", str(REPLICAS), *options.split()]
    with ServerProcess(command, port):
        replicas = RealReplicas(port, REPLICAS)
        before = asyncio.run(replicas.calibrate())
        most = before.decode[-1]
        scenario = Scenario(
            calibration=before,
            num_replicas=REPLICAS,
            traffic=traffic,
            rate=0.6 * REPLICAS * most.rows / most.ms * 1e3 / answers.median,
            limits=Limits(max_num_seqs=DEMO_ROWS),
            duration_s=seconds,
            warmup_s=seconds / 4,
        )
        measured = asyncio.run(replicas.serve(scenario))
        after = asyncio.run(replicas.calibrate())
    simulated = simulate(msgspec.structs.replace(scenario, calibration=mean_of(before, after)))
    return {
        "before": msgspec.to_builtins(before),
        "after": msgspec.to_builtins(after),
        "simulated": Row("simulated", scenario.rate, simulated).figures,
        "measured": Row("measured", scenario.rate, measured).figures,
    }


if __name__ == "__main__":
    main()
