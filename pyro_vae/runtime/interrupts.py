"""Ctrl-C, deferred to the end of a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _Interrupts:
    """State of the handler of Ctrl-C: whether it is installed, defers Ctrl-C now, and has a pending Ctrl-C."""

    def __init__(self) -> None:
        self.installed = self.deferring = self.pending = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.deferring or self.pending:  # a second Ctrl-C is not deferred
            self.pending = False
            signal.default_int_handler(number, frame)
        self.pending = True


_interrupts = _Interrupts()


@contextmanager
def deferrable() -> Iterator[None]:
    """A block that installs the handler of `uninterrupted`, which is then very cheap within the block.

    It does nothing outside the main thread, where Ctrl-C never arrives, and if the caller handles the signal.
    """
    if (
        _interrupts.installed
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _interrupts.handle)
    _interrupts.installed = True
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _interrupts.installed = False


class uninterrupted:
    """A block that defers Ctrl-C: KeyboardInterrupt is raised at its end.

    So in-place changes of many tensors are made completely or not at all.
    """

    def __enter__(self) -> None:
        self._handler = None if _interrupts.installed else deferrable()
        if self._handler is not None:
            self._handler.__enter__()
        self._outer = _interrupts.deferring
        _interrupts.deferring = _interrupts.installed and threading.current_thread() is threading.main_thread()

    def __exit__(self, *exception: object) -> None:
        _interrupts.deferring = self._outer
        if self._handler is not None:
            self._handler.__exit__(None, None, None)
        if _interrupts.pending and not self._outer:
            _interrupts.pending = False
            raise KeyboardInterrupt
