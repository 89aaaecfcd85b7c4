"""Fill three outputs of a run by processes that are killed at random writes: RUN DATA FOLDER.

Prints, for each kill and store, how many units had been begun and were lost. Processes are forked from one
that has imported everything and computed nothing.
"""

import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cache.unit
from cache.store import Store, find_stores
from pipeline import api
from pipeline.api import Paths, choose_execution
from pipeline.precompute.worker import Worker

RUN, DATA, FOLDER = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
VIEWS, LIMIT, KILLS = 2, 40, 2  # as in test_pipeline_maps.py


def fill(stores: Path, *, dies_at: int | None, log: Path) -> None:
    """Stage one, which kills itself before its `dies_at`-th file of a unit is written."""
    write, start, n = cache.unit.create_durably, Worker._start, iter(range(1000))

    def writing(*what):
        if next(n) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*what)

    def starting(worker, partial, pixels):
        with log.open("a") as file:
            file.writelines(f"{each.store.form.width}\t{partial.unit}\n" for each in partial.source_stores)
        return start(worker, partial, pixels)

    cache.unit.create_durably, Worker._start = writing, starting
    api.precompute(
        ["digits"],
        [RUN],
        views=VIEWS,
        output=("logits", "pooled", "layer2:4"),
        paths=Paths(DATA, stores),
        execution=choose_execution(device="cpu", amp="fp32", renderer="torch", threads=1),
        limit=LIMIT,
    )


def forked(stores: Path, *, dies_at: int | None, log: Path) -> int:
    """The signal that ended a process that fills `stores`, 0 if it came to its end."""
    child = os.fork()
    if not child:
        fill(stores, dies_at=dies_at, log=log)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    rng, log = random.Random(1), FOLDER / "log"
    lost, finished = [], Counter()
    for _ in range(KILLS):
        log.unlink(missing_ok=True)
        assert forked(FOLDER / "hurt", dies_at=rng.randrange(6), log=log) == -signal.SIGKILL
        begun = Counter(line.split("\t")[0] for line in set(log.read_text().splitlines()))
        before, finished = finished, finished_units()
        lost.append({store: n - (finished[store] - before[store]) for store, n in begun.items()})
    assert forked(FOLDER / "hurt", dies_at=None, log=log) == 0
    print(json.dumps(lost))


def finished_units() -> Counter[str]:
    """By the width of a store's rows."""
    stores = map(Store.open, find_stores(FOLDER / "hurt"))
    return Counter({str(store.form.width): len(store.finished_units()) for store in stores})


main()
