"""Memory for the images of batches, shared with loader processes and used again and again.

A batch of 64 images of 224 pixels is 10 MB. Put into fresh shared memory, as a DataLoader does it, its 2,352 new pages
cost the kernel about half of what decoding the images costs. Here the process that trains maps the memory once, before
the loader processes are forked, and names a part of it in each request; what comes back over the queue is small. A part
is free again when the last tensor that shows it is gone, so a batch may be kept as long as anybody likes: when no part
is free, batches travel as they do in any DataLoader.
"""

import mmap
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from shards.loading.request import Request


class Buffers:
    """`count` parts of `batch_size` square images, `image_size` pixels a side. Only for processes forked later."""

    def __init__(self, count: int, batch_size: int, image_size: int):
        self._shape = (batch_size, image_size, image_size, 3)
        self._part = batch_size * image_size * image_size * 3
        self._memory = mmap.mmap(-1, count * self._part)
        self._free = deque(range(count))

    def assigned(self, requests: Iterable[Request]) -> Iterator[Request]:
        """The requests, each with a free part that is large enough, if there is one."""
        for request in requests:
            fits = len(request) + request.fill <= self._shape[0]
            yield replace(request, buffer=self._free.popleft()) if fits and self._free else request

    def images(self, buffer: int, count: int) -> torch.Tensor:
        """A part as uint8 [count, 3, S, S], for a loader process to fill; what a former batch left is still there."""
        return self._show(self._array(buffer), count)

    def lend(self, buffer: int, count: int) -> torch.Tensor:
        """As `images`, in the process that trains; the part is free again when nobody has the tensor any more."""
        array = self._array(buffer)
        # Whatever shows these pixels holds torch's storage, and that holds the array.
        weakref.finalize(array, self._free.append, buffer).atexit = False
        return self._show(array, count)

    def _array(self, buffer: int) -> np.ndarray:
        return np.frombuffer(self._memory, np.uint8, self._part, buffer * self._part)

    def _show(self, array: np.ndarray, count: int) -> torch.Tensor:
        return torch.from_numpy(array).view(self._shape)[:count].permute(0, 3, 1, 2)
