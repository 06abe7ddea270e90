"""A run that is asked to stop, by Ctrl-C, SIGTERM or a terminal that closes, ends after its step and leaves everything
written."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

DEFAULTS = {
    signal.SIGINT: (signal.default_int_handler, signal.SIG_DFL),
    signal.SIGTERM: (signal.SIG_DFL,),
    signal.SIGHUP: (signal.SIG_DFL,),
}
"""The signals that stop a run, and what they do where nobody has chosen: then alone they are handled here. (`nohup`
ignores SIGHUP, and a program may have handlers of its own.)"""
AGAIN = 1.0
"""Seconds within which a second signal is the same one: torchrun may send it twice."""
FIRST = b"\nllm-mdp: stopping after this step; once more ends the run at once\n"


class Stopped(KeyboardInterrupt):
    """A signal ended the run; the words say how to go on.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int, words: str = ""):
        super().__init__(words)
        self.number, self.status = number, 128 + number
        """The exit status that shells expect."""


class Stop:
    """Notes the first signal; the second raises `Stopped` wherever the run is, and the third kills."""

    number = 0
    """The first signal that came; 0: none."""

    def __init__(self) -> None:
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
            if number == signal.SIGHUP:
                self._leave_terminals()
            # Not through sys.stderr, which may be in the middle of a line.
            with suppress(OSError):
                os.write(2, FIRST)
        elif now - self._since > AGAIN:
            signal.signal(number, signal.SIG_DFL)
            raise Stopped(self.number)

    def heard_elsewhere(self, number: int) -> None:
        """What another process of the group noted; 0: nothing, which takes back nothing that came here meanwhile."""
        if number and not self.number:
            self.number, self._since = number, time.monotonic()

    def check(self) -> None:
        """Raise `Stopped` if a signal came: where there is nothing yet that would be lost."""
        if self.number:
            raise Stopped(self.number)

    def _leave_terminals(self) -> None:
        """Whatever is said from here on goes nowhere: writing to a terminal that is gone would be an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def listening(wanted: bool) -> Iterator[Stop]:
    """Note signals while the context is open; afterwards they do what they did before. Outside of the main thread
    Python hears none.

    Args:
        wanted: False: signals do what they always do.
    """
    stop = Stop()
    before = {}
    if wanted and threading.current_thread() is threading.main_thread():
        for number, defaults in DEFAULTS.items():
            if (handler := signal.getsignal(number)) in defaults:
                before[number] = handler
                signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
