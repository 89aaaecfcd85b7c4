"""Processes that start at once: forked from a server that has imported the program and computed nothing.

A Python of its own takes four seconds of a core before its first line (torch, torchvision, DALI); the tests
that need a process (to kill it, to be a rank, to know nothing of the test's own) start some ninety.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

PATIENCE_S = 300  # a machine may have other work
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "cli",
        "pipeline.api",
        # what commands import when they need it: a second of each process otherwise
        "pipeline.data.render.dali",
        "scipy.optimize",
        "sklearn.datasets",
        "sklearn.metrics",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        # what torch imports as it opens a program
        "torch.export._trace",
        "torch._functorch.aot_autograd",
        "torch._inductor.codecache",
        "sympy.tensor.tensor",
    ]
)


class Process:
    """`python WORDS...`: the part of subprocess.Popen that tests use, with bytes in its pipes."""

    def __init__(self, *words, cwd=None, env=None):
        ends = [_FORKS.Pipe(duplex=False) for _ in range(3)]
        theirs = [ends[0][0], ends[1][1], ends[2][1]]
        ours = [ends[0][1], ends[1][0], ends[2][0]]
        where = str(cwd or Path.cwd())
        arguments = ([str(word) for word in words], where, dict(env or os.environ), theirs)
        self._process = _FORKS.Process(target=_become, args=arguments, daemon=True)
        self._process.start()
        files = [
            os.fdopen(os.dup(end.fileno()), mode) for end, mode in zip(ours, ("wb", "rb", "rb"), strict=True)
        ]
        self.stdin, self.stdout, self.stderr = files
        for end in (*theirs, *ours):
            end.close()

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        """Its exit status, the negative number of the signal that ended it, None while it runs."""
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            with suppress(ProcessLookupError):  # if it has just ended
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, words=b""):
        """What it says on both pipes until its end, once it has read `words`."""
        with ThreadPoolExecutor(2) as pool, self.stdout, self.stderr:
            said = [pool.submit(pipe.read) for pipe in (self.stdout, self.stderr)]
            with self.stdin:
                self.stdin.write(words)
            self._process.join(PATIENCE_S)
            late = self.poll() is None
            self.kill()  # so that its pipes end
            out, err = (pipe.result() for pipe in said)
        assert not late, f"{self.pid} has not ended after {PATIENCE_S} s: {err.decode()}"
        return out, err


def wait_for_less(store, n_pending, process):
    """Until a process has written a unit of a store, or has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while len(store.pending(store.n_views)) >= n_pending and process.poll() is None:
        assert time.monotonic() < deadline, f"nothing was written in {PATIENCE_S} s"
        time.sleep(0.001)


def run_python(*words, cwd=None, env=None):
    """`python WORDS...` to its end, and what it said as text."""
    process = Process(*words, cwd=cwd, env=env)
    out, err = process.communicate()
    return CompletedProcess(words, process.returncode, out.decode(), err.decode())


def _become(words, cwd, env, pipes):
    """Do what `python WORDS...` would do."""
    for descriptor, pipe in enumerate(pipes):
        os.dup2(pipe.fileno(), descriptor)
        pipe.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the server does with Ctrl-C
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    first, *rest = words
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path.insert(0, str(Path(first).parent) if first.endswith(".py") else cwd)
    sys.argv = words if first.endswith(".py") else [first, *rest[1:]]
    try:
        if first == "-c":
            sys.modules["__main__"] = ModuleType("__main__")
            exec(rest[0], vars(sys.modules["__main__"]))
        elif first == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(first, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a fork ends without them
