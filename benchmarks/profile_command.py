"""The largest costs of a command of being-vl: operators of torch, and all that is none.

    OMP_NUM_THREADS=1 python benchmarks/profile_command.py train --checkpoint DIR --data ROWS --max_steps 2 …

Runs the command in this process under torch's profiler, after the imports, whose time is printed apart. Times are
seconds of the main thread, without what an operator calls; "not in operators" is the rest of the CPU time: Python,
files, other libraries. The profiler reads the clock: use one thread, and a machine without other work.
"""

from __future__ import annotations

import sys
import time

started = time.process_time()
import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import being_vl.data  # noqa: E402
import being_vl.hub.checkpoint  # noqa: E402
import being_vl.training.trainer  # noqa: E402, F401
from being_vl.cli import main  # noqa: E402

MOST = 10


def report(argv: list[str]) -> int:
    """Run, and print a Markdown table."""
    imports = time.process_time() - started
    before, cpu = time.perf_counter(), time.process_time()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        status = main(argv)
    wall, cpu = time.perf_counter() - before, time.process_time() - cpu
    costs = [
        (event.self_cpu_time_total / 1e6, event.key, event.count)
        for event in profiled.key_averages()
    ]
    costs.append((cpu - sum(cost for cost, _, _ in costs), "not in operators", 1))
    costs.sort(reverse=True)
    print(
        f"\nimports {imports:.1f} CPU s; command {wall:.1f} s, {cpu:.1f} CPU s, {torch.get_num_threads()} thread(s)"
    )
    print("\n| cost | s | share | calls |\n|---|---|---|---|")
    for seconds, name, count in costs[:MOST]:
        print(f"| {name} | {seconds:.2f} | {100 * seconds / cpu:.0f} % | {count} |")
    return status


if __name__ == "__main__":
    sys.exit(report(sys.argv[1:]))
