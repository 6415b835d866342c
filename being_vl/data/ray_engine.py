"""tasks → results, by actors of Ray: what `--engine ray` of `encode` and `tokenize` runs on.

Work goes to Ray as small tasks (the number of a part, a chunk of samples), one at a time to an actor, so the memory
of the pipeline is that of what its actors hold. An actor or a node that dies gives its task back. Ray restarts actors
by itself, too (`max_restarts`), but then a task waits for its own actor, for ever where the node's CPUs are gone.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_MOST_DEATHS = 10  # of actors over one task, which is then taken for the cause


def ray_map(
    make: Callable[[], Callable[[Task], Result]],
    tasks: Iterable[Task],
    *,
    workers: int,
    cpus: float = 1,
    gpus: float = 0,
) -> Iterator[Result]:
    """The results of all tasks, as they come.

    Args:
        make: called once in each actor, gives what does a task; it travels with all that it holds.
        tasks: taken from as actors become free.
        workers: actors.
        cpus, gpus: of each actor.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: a task at which ten actors have died.
        Exception: what `make` or a task raises.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('--engine ray needs pip install "being-vl[ray]"') from error
    # A cluster that runs here or that RAY_ADDRESS names; else one of this machine alone.
    ray.init(ignore_reinit_error=True, include_dashboard=False, logging_level="error")
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Actor)
    made = ray.put(make)
    numbered, back = enumerate(tasks), deque[tuple[int, Task]]()
    # By call: the actor, and its task, None while it starts.
    running: dict[Any, tuple[Any, tuple[int, Task] | None]] = {}
    idle: list[Any] = []
    deaths: Counter[int] = Counter()

    def start() -> None:
        worker = actor.remote(made, os.getcwd())
        running[worker.ready.remote()] = (worker, None)

    for _ in range(workers):
        start()
    waiting = next(numbered, None)  # the task that the next idle actor gets
    try:
        while waiting is not None or any(task is not None for _, task in running.values()):
            while idle and waiting is not None:
                worker = idle.pop()
                running[worker.work.remote(waiting[1])] = (worker, waiting)
                waiting = back.popleft() if back else next(numbered, None)
            done, _ = ray.wait(list(running))
            worker, task = running.pop(done[0])
            try:
                result = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayActorError as error:
                if getattr(error, "actor_init_failed", False):
                    raise
                start()
                if task is None:
                    continue
                deaths[task[0]] += 1
                if deaths[task[0]] == _MOST_DEATHS:
                    message = f"{_MOST_DEATHS} actors died at one task: {error}"
                    raise RuntimeError(message) from error
                back.append(task)
                waiting = waiting or back.popleft()
                continue
            idle.append(worker)
            if task is not None:
                yield result
    finally:
        for worker in (*idle, *(worker for worker, _ in running.values())):
            ray.kill(worker)


class _Actor:
    def __init__(self, make: Callable[[], Callable[[Any], Any]], folder: str):
        if os.path.isdir(folder):  # names are relative to where the command was started
            os.chdir(folder)
        self._work = make()

    def ready(self) -> None:
        """Answers when the actor has been made."""

    def work(self, task: Any) -> Any:
        return self._work(task)
