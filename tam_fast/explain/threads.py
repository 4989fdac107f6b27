"""The two threads of a stream: one generates, one iterates, and only one of them runs at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue

import torch
from torch import Tensor

from tam_fast.models.capture import CapturedCandidates
from tam_fast.models.recording import Recording

__all__ = ["Ambience", "Channel", "TokenStreamer"]


class StoppedError(Exception):
    """Unwinds generate() in its thread when nobody wants more."""


class Channel:
    """Hands tokens from the thread that generates to the one that iterates; only one of the two runs at a time."""

    def __init__(self) -> None:
        self.rows: deque[Tensor] = deque()  # states (n, C) that have not been taken over
        self.candidates = CapturedCandidates()
        self.recording: Recording | None = None  # once generation has begun
        self.error: BaseException | None = None
        self._tokens: SimpleQueue[int | None] = SimpleQueue()  # None at the end
        self._wanted: SimpleQueue[bool] = SimpleQueue()  # False: no more

    # The generating side.

    def run(self, generate: Callable[[Channel], None]) -> None:
        """Generate as soon as a token is wanted."""
        try:
            if self._wanted.get():
                generate(self)
        except StoppedError:
            pass
        except BaseException as error:  # all of it is the loop's to handle
            self.error = error
        self._tokens.put(None)

    def send(self, token_id: int) -> None:
        """Hand a token over, and wait until the next one is wanted."""
        self._tokens.put(token_id)
        if not self._wanted.get():
            raise StoppedError

    # The iterating side.

    def receive(self) -> int | None:
        """Let generation go on to its next token; None at its end."""
        self._wanted.put(True)
        return self._tokens.get()

    def close(self) -> None:
        """Want no more."""
        self._wanted.put(False)


class TokenStreamer:
    """What generate() calls a streamer: gets the prompt first, then each token."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """Take ids (1, n)."""
        if self._prompt:
            self._prompt = False
            return
        for token_id in value.flatten().tolist():
            self._channel.send(int(token_id))

    def end(self) -> None:
        """Do nothing: the thread's end says it."""


class Ambience:
    """What torch keeps per thread, taken from the calling one: CUDA stream and autocast."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._autocast = None
        if torch.is_autocast_enabled(device.type):
            self._autocast = (device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_cache_enabled())

    def enter(self, stack: ExitStack) -> None:
        """Make it this thread's until the stack is left."""
        if self._stream is not None:
            stack.enter_context(torch.cuda.stream(self._stream))
        if self._autocast is not None:
            device_type, dtype, cached = self._autocast
            stack.enter_context(torch.autocast(device_type, dtype=dtype, cache_enabled=cached))
