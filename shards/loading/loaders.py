"""What a training script holds: loaders with the state methods of torch's `Stateful` and the habits of torchdata's
StatefulDataLoader.

A state may be taken at any moment, also in the middle of a pass, and counts what was handed out and not what is being
prepared. It is loaded before iterating. States are positions in the one global order, so a state of one rank is that of
all of them, and any number of ranks can go on from it.

A training loader is endless unless `steps` gives the length of a pass; iterating again goes on where it stopped. A
validation loader passes once over its samples; iterating again begins again, and goes on only from a loaded state.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from shards.config import DataConfig
from shards.loading.batch import Batch, Slot
from shards.loading.evaluate import eval_stream
from shards.loading.state import StreamState, resume
from shards.loading.subset import Subset
from shards.loading.train import TrainStream, train_stream
from shards.settings import ConfigError


class TrainLoader:
    """Batches of one rank for training. Use it with `with`, or close it, to stop its loader processes."""

    def __init__(
        self,
        subsets: Sequence[Subset],
        config: DataConfig,
        slot: Slot,
        steps: int | None = None,
        device: torch.device | None = None,
        pin_memory: bool = False,
    ):
        if config.batch_size < slot.world_size:
            raise ConfigError(f"data.batch_size: must be at least 1 for each of {slot.world_size} ranks, got "
                              f"{config.batch_size}")  # fmt: skip
        if steps is not None and steps < 1:
            raise ConfigError(f"steps: must be at least 1, got {steps}")
        self._subsets, self._config, self._slot, self._steps = subsets, config, slot, steps
        self._device, self._pin_memory = device, pin_memory
        self._state, self._done = resume(subsets, config, StreamState()), 0
        self._stream: TrainStream | None = None

    def __len__(self) -> int:
        """Batches of a pass. Raises TypeError where it is endless."""
        if self._steps is None:
            raise TypeError("this loader is endless; give steps= for passes of a length")
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        if self._steps is not None and self._done >= self._steps:
            self._done = 0
        while self._steps is None or self._done < self._steps:
            if self._stream is None:
                self._stream = self._open()
            batch = next(self._stream)
            self._done += 1
            yield batch if self._device is None else batch.to(self._device)
        self._done = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values, under 1 KB, equal on every rank."""
        state = self._stream.state() if self._stream else self._state
        return {**state.to_json(), "origin": [*state.origin], "batches": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on from `state`. Raises ConfigError, with every difference, if it is of other data
        and the configuration does not say `on_change: continue`.
        """
        values = dict(state)
        done = int(values.pop("batches", 0))
        found = resume(self._subsets, self._config, StreamState(**values))
        self.close()
        self._state, self._done = found, done

    def close(self) -> None:
        """Stops the loader processes; iterating again starts new ones."""
        if self._stream:
            self._state = self._stream.state()
            self._stream.close()
            self._stream = None

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        each = "endless" if self._steps is None else f"{self._steps} batches a pass"
        at = (self._stream.state() if self._stream else self._state).position
        rank = f"rank {self._slot.rank} of {self._slot.world_size}"
        return f"TrainLoader({each}, batches of {self._config.batch_size}, {rank}, at sample {at:,})"

    def _open(self) -> TrainStream:
        return train_stream(
            self._subsets, self._config, self._slot, self._state, pin_memory=self._pin_memory, device=self._device
        )


class EvalLoader:
    """Every sample once, over all ranks; equally many batches on each, filled up under `valid`."""

    def __init__(self, subsets: Sequence[Subset], config: DataConfig, slot: Slot, pin_memory: bool = False):
        self._stream = eval_stream(subsets, config, slot, pin_memory)
        self._identity = {subset.name: subset.identity() for subset in subsets}
        self._position = 0  # of the newest iteration
        self._loaded: int | None = None  # where the next one begins, if a state says so

    @property
    def num_samples(self) -> int:
        """Samples of the whole pass, over all ranks."""
        return self._stream.num_samples

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Batch]:
        self._position, self._loaded = self._loaded or 0, None
        return self._pass(self._position)

    def _pass(self, start: int) -> Iterator[Batch]:
        for batch in self._stream.batches(start):
            self._position = min(self._position + self._stream.batch_size, self.num_samples)
            yield batch
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values, equal on every rank."""
        return {"position": self._position if self._loaded is None else self._loaded, "sources": self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on from `state`. Raises ConfigError if it is of other samples."""
        if state["sources"] != self._identity:
            raise ConfigError("the state is of other data: " + ", ".join(
                name for name in sorted({*state["sources"], *self._identity})
                if state["sources"].get(name) != self._identity.get(name)
            ))  # fmt: skip
        self._loaded = int(state["position"])

    def __repr__(self) -> str:
        return f"EvalLoader({len(self)} batches, {self.num_samples:,} samples of {', '.join(self._identity)})"
