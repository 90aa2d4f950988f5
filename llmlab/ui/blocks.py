"""Gradio's Blocks for two hundred visitors at once: who arrives costs little, and many may wait while few compute."""

from __future__ import annotations

from typing import Any

import gradio as gr
from anyio import CapacityLimiter
from gradio.blocks import BlocksConfig

MOST_WAITING = 400
"""Events that may wait in Gradio's queue, several of a visitor among them."""
MOST_EVENTS = 300
"""Events that may be under way at once: whoever waits in the engine's queue has one under way, and the page's own short
events must find room beside two hundred of these."""
THREADS = 8
"""In which events compute. Gradio takes a thread for each of a run's hundred controls, and many threads at once keep
the interpreter from the one that answers requests."""
LOOKS = 0.02
"""Seconds between two looks for new events. Gradio looks a thousand times a second, each time taking the interpreter
from the engine."""


class Blocks(gr.Blocks):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.default_config = VisitorsConfig(self)

    def create_limiter(self) -> None:
        self.limiter = CapacityLimiter(THREADS)  # type: ignore[assignment]

    def queued(self) -> Blocks:
        """With the queue that its visitors' events pass."""
        self.queue(max_size=MOST_WAITING, api_open=False, default_concurrency_limit=16)
        self._queue.sleep_when_free = LOOKS
        return self


class VisitorsConfig(BlocksConfig):
    """The page's components and events, copied for each visitor.

    For every visitor Gradio describes every component anew, for links to a state of the page, which this page does not
    offer. That takes a tenth of a second in which nobody is answered (five seconds for fifty pupils), and a megabyte. A
    copy describes none.
    """

    def __copy__(self) -> BlocksConfig:
        copied: BlocksConfig = super().__copy__()  # type: ignore[no-untyped-call]
        copied.config_for_block = lambda *_: {}  # type: ignore[method-assign]
        return copied
