"""Waiting takes no time inside: a verdict rests on CPU time, and nothing in here is worth waiting for."""

import importlib.abc
import importlib.machinery
import signal
import sys
import time


def wait_for_nothing() -> None:
    """`time.sleep` returns at once, and asyncio's loops need no socket, no selector and no signal handler, which the
    filter refuses."""
    time.sleep = sleep_at_once
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # asyncio.run replaces Python's own handler only
    sys.meta_path.insert(0, AsyncioFinder())


def sleep_at_once(seconds: float) -> None:
    pass


class AsyncioFinder(importlib.abc.MetaPathFinder):
    """Finds asyncio as Python does. Imported beforehand it would make every fork dearer by half."""

    def find_spec(self, fullname, path, target=None):
        if fullname != "asyncio":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = AsyncioLoader(spec.loader)
        return spec


class AsyncioLoader(importlib.abc.Loader):
    def __init__(self, loader) -> None:
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        self.loader.exec_module(module)
        make_loops_that_do_not_wait(module)


def make_loops_that_do_not_wait(asyncio) -> None:
    """Where all tasks wait, a loop's clock moves on to the first that has a time."""

    class EventLoop(asyncio.BaseEventLoop):
        def __init__(self) -> None:
            super().__init__()
            self._selector = self
            self._moved = 0.0

        def time(self) -> float:
            return super().time() + self._moved

        def select(self, timeout: float | None) -> list:
            if timeout is None:
                raise RuntimeError("every task waits, and nothing is left that could wake one")
            self._moved += timeout
            return []

        def _process_events(self, events: list) -> None:
            pass

        def _write_to_self(self) -> None:
            pass

    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self):
            return EventLoop()

    asyncio.set_event_loop_policy(Policy())
