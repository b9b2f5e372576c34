"""A network link with latency, for kernels without `netem`: two TAP devices, and a thread that delays their frames."""

import collections
import contextlib
import fcntl
import os
import select
import struct
import threading
import time

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_MAX_FRAME = 2**16  # bytes


class SlowLink:
    """A link between two network devices. They start in this process's namespace, and may be moved to others."""

    def __init__(self, ends: tuple[str, str], seconds: float):
        self._seconds, self._closed = seconds, threading.Event()
        self._files = [os.open("/dev/net/tun", os.O_RDWR) for _ in ends]
        for file, name in zip(self._files, ends, strict=True):
            fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def _forward(self) -> None:
        first, second = self._files
        in_transit = {first: collections.deque[tuple[float, bytes]](), second: collections.deque[tuple[float, bytes]]()}
        while not self._closed.is_set():
            due = min((frames[0][0] for frames in in_transit.values() if frames), default=time.monotonic() + 0.2)
            for file in select.select(self._files, [], [], max(0.0, due - time.monotonic()))[0]:
                frame = os.read(file, _MAX_FRAME)
                in_transit[second if file == first else first].append((time.monotonic() + self._seconds, frame))
            for file, frames in in_transit.items():
                while frames and frames[0][0] <= time.monotonic():
                    with contextlib.suppress(OSError):  # the device is down: the frame is lost
                        os.write(file, frames.popleft()[1])

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        for file in self._files:
            os.close(file)
