"""Servers that a command starts must not outlive it, even where it is killed outright."""

from __future__ import annotations

import os
import signal
import threading


def end_with_parent() -> None:
    """End with the process that started this one."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
