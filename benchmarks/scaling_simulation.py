"""Simulates replicas behind the router, for docs/SCALING.md: `python benchmarks/scaling_simulation.py --help`.

Needs simpy, of the dev extra, and for plots matplotlib. All studies take some minutes of two cores, one alone a minute or two.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ("offline", "routings", "policies", "queues", "groups", "routers", "cells", "cost")
ONE, TWO = "8B, one H200", "8B, two H200"
HOST = 8
"""Replicas of one GPU on a host."""


def main() -> int:
    """Run the chosen studies and print a table of each."""
    arguments = _arguments()
    # The checkout need not be installed.
    sys.path[:0] = [str(ROOT)]

    from benchmarks.scaling import plots, studies
    from benchmarks.scaling.step_time import read_calibrations

    calibrations = read_calibrations()
    one, pair = calibrations[ONE], {name: calibrations[name] for name in (ONE, TWO)}
    scenarios = {
        "routings": lambda: studies.routings(one, HOST, [5, 15, 25, 35, 45]),
        "policies": lambda: studies.policies(one, HOST, 30),
        "queues": lambda: studies.queue_bounds(one, HOST, [240, 280, 340], [4, 16, 32, 64, 256, 4096]),
        "groups": lambda: studies.groups(pair, HOST, [5, 15, 25, 35, 45, 55]),
        "routers": lambda: studies.routers(one, 4 * HOST, 120, [1, 2, 4, 16]),
        "cells": lambda: studies.cells(one, 10 * HOST, studies.cell_loads(100, 300)),
    }
    results: dict[str, list[dict[str, object]]] = {}
    with ProcessPoolExecutor(arguments.processes) as executor:
        for study in arguments.study or STUDIES:
            if study == "offline":
                rows = [
                    {
                        "replica": name,
                        "measured": measured,
                        "simulated": round(simulated),
                        "ratio": round(simulated / measured, 3),
                    }
                    for name, measured, simulated in studies.offline(calibrations)
                ]
            elif study == "cost":
                rows = [{"replicas": count, "route_us": round(studies.routing_us(count))} for count in (2, 8, 80, 800)]
            else:
                rows = [
                    {study: row.label, "rate": row.rate, **row.figures} for row in studies.run(executor, scenarios[study]())
                ]
            results[study] = rows
            print(f"\n{study}\n{_table(rows)}", flush=True)
            if arguments.json:
                _write(arguments.json, results)
    if arguments.plots:
        plots.write(arguments.plots, results)
    return 0


def _write(path: Path, results: dict[str, list[dict[str, object]]]) -> None:
    """Put the rows of studies into a file, beside those of other studies."""
    known = json.loads(path.read_text()) if path.exists() else {}
    lines = (f' "{study}": [\n{_lines(rows)}\n ]' for study, rows in (known | results).items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _table(rows: list[dict[str, object]]) -> str:
    """A Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _lines(rows: list[dict[str, object]]) -> str:
    return ",\n".join(f"  {json.dumps(row)}" for row in rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", nargs="+", choices=STUDIES, help="only these")
    parser.add_argument("--processes", type=int, default=2, help="simulations at a time")
    parser.add_argument("--json", type=Path, help="file to put the rows into, beside those of other studies that it has")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="where to draw the plots of the studies")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
