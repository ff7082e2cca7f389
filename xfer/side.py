"""Side inputs: text, numbers and categories of a sample become a vector that modulates the fused feature.

    e_f = [ what field f says ]  or  m_f where it says nothing,    e = relu(e_1, ..., e_F)
    z' = (1 + gamma) z + beta,   (gamma, beta) = W e

a feature-wise linear modulation (FiLM: Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, AAAI
2018, sec. 2). W begins at 0, where z' is z to the bit: the model begins as the one without side inputs. m_f is
learned, so a field may be missing anywhere, and a model that is called without side inputs is one whose fields are all
missing. That has to be trained too: a part of the training samples is seen without (modality dropout: Neverova et al.,
ModDrop, TPAMI 2016, sec. 3.3), by the position in the stream alone.

A category is a row of its own for each value that the training data has at least twice, at most `VALUES` of them; any
other value counts as missing. A number is measured by mean and deviation of the training data. A text is the hashed
n-grams of its words (xfer/encoders.py) without those that are a class's name. All that is taken from the training data
is in tensors, values and names as hashes: checkpoints and bundles have it, and a sender's name cannot be read there,
though whoever guesses one can check it.

Cost: about 70 kB for a category, 17 kB for a text; a text of 20 words takes 0.5 ms once, for the last ones are kept.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shards.format.hashing import fold, key, name_key, uniforms
from shards.loading.batch import Batch
from xfer.encoders import DIMS, hash_text
from xfer.model_config import FieldKind
from xfer.spelling import words

WIDTH = 16  # numbers that a field becomes
VALUES = 1024  # of a category
LEAST = 2  # samples of a value; one of a single sample could only be learned by heart
MOST = 5.0  # deviations from the mean that a number counts for
Said = Mapping[str, Any]
"""What is said of one sample, by field: text, number or list of texts."""
_SALT = 5  # of draws: looks have 2, replacements 3
_KEPT = 16_384  # texts
_LONGEST = 4  # words that a class's name may be written in
_INT63 = (1 << 63) - 1


class Part(Protocol):
    """What encodes one field; `columns`: how many numbers of a row are its own, all NaN where it is missing."""

    columns: ClassVar[int]

    def read(self, values: Sequence[Any], names: frozenset[int]) -> Tensor:
        """values [n], None where missing -> float32 [n, columns]. names: hashes of the classes' names."""
        ...

    def learn(self, values: Sequence[Any]) -> dict[str, Any]:
        """What it has to know of the values of the training data, of which none is None and there is one at least; as
        plain values, for `know`.
        """
        ...

    def know(self, facts: Mapping[str, Any]) -> None:
        """Takes over what was learned."""
        ...

    def linear(self, column: Tensor) -> Tensor:
        """What a linear classifier can read, float32 [n, c], of float32 [n, columns] without NaN."""
        ...

    def forward(self, column: Tensor) -> Tensor:
        """float32 [n, columns] without NaN -> [n, WIDTH]."""
        ...


class Category(nn.Module):
    """A row for each of the known values, by their hashes: int64 [VALUES], 0 where there is none."""

    columns: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.known: Tensor
        self.register_buffer("known", torch.zeros(VALUES, dtype=torch.int64))
        self.rows = nn.Parameter(torch.randn(VALUES, WIDTH))

    def read(self, values: Sequence[Any], names: frozenset[int]) -> Tensor:
        """See `Part`."""
        places = {hashed: float(at) for at, hashed in enumerate(self.known.tolist()) if hashed}
        found = [places.get(hash_of(value_text(one)), torch.nan) if one is not None else torch.nan for one in values]
        return torch.tensor(found).reshape(-1, 1)

    def learn(self, values: Sequence[Any]) -> dict[str, Any]:
        """See `Part`."""
        counts = Counter(value_text(one) for one in values)
        often = [text for text in sorted(counts, key=lambda text: (-counts[text], text)) if counts[text] >= LEAST]
        return {"values": often[:VALUES], "others": len(counts) - len(often[:VALUES])}

    def know(self, facts: Mapping[str, Any]) -> None:
        """See `Part`."""
        hashes = [hash_of(text) for text in facts["values"]]
        self.known.zero_()
        self.known[: len(hashes)] = torch.tensor(hashes, dtype=torch.int64)

    @property
    def num_known(self) -> int:
        """Values that have a row."""
        return int((self.known != 0).sum())

    def linear(self, column: Tensor) -> Tensor:
        """See `Part`."""
        return nn.functional.one_hot(column[:, 0].long(), max(1, self.num_known)).float()

    def forward(self, column: Tensor) -> Tensor:
        return nn.functional.embedding(column[:, 0].long(), self.rows)


class Number(nn.Module):
    """In deviations from the mean of the training data."""

    columns: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("deviation", torch.ones((), dtype=torch.float64))
        self.enter = nn.Linear(1, WIDTH)

    def read(self, values: Sequence[Any], names: frozenset[int]) -> Tensor:
        """See `Part`. What is no number is missing."""
        found = torch.tensor([one if is_number(one) else torch.nan for one in values], dtype=torch.float64)
        scaled = (found - self.mean.cpu()) / self.deviation.cpu()
        return scaled.clamp(-MOST, MOST).float().reshape(-1, 1)

    def learn(self, values: Sequence[Any]) -> dict[str, Any]:
        """See `Part`."""
        found = np.array(values, np.float64)
        return {"mean": float(found.mean()), "deviation": float(found.std()) or 1.0}

    def know(self, facts: Mapping[str, Any]) -> None:
        """See `Part`."""
        self.mean.fill_(facts["mean"])
        self.deviation.fill_(facts["deviation"])

    def linear(self, column: Tensor) -> Tensor:
        """See `Part`."""
        return column

    def forward(self, column: Tensor) -> Tensor:
        return self.enter(column)


class Text(nn.Module):
    """The hashed n-grams of its words; a text of which no word is left is missing."""

    columns: ClassVar[int] = DIMS

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(DIMS, WIDTH)

    def read(self, values: Sequence[Any], names: frozenset[int]) -> Tensor:
        """See `Part`."""
        none = torch.full((DIMS,), torch.nan)
        return torch.stack([none if one is None else _text_vector(_joined(one), names) for one in values])

    def learn(self, values: Sequence[Any]) -> dict[str, Any]:
        """See `Part`."""
        return {}

    def know(self, facts: Mapping[str, Any]) -> None:
        """See `Part`."""

    def linear(self, column: Tensor) -> Tensor:
        """See `Part`."""
        return column

    def forward(self, column: Tensor) -> Tensor:
        return self.enter(column)


PARTS: dict[FieldKind, type[Category] | type[Number] | type[Text]] = {
    "category": Category,
    "number": Number,
    "text": Text,
}


class SideInputs(nn.Module):
    """Fused features [B, C] and rows float32 [B, E] of `encode` -> features [B, C]."""

    def __init__(self, fields: Mapping[str, FieldKind], channels: int, num_classes: int):
        super().__init__()
        self.fields = dict(sorted(fields.items()))
        self.parts = nn.ModuleList(PARTS[kind]() for kind in self.fields.values())
        self.missing = nn.Parameter(torch.randn(len(self.fields), WIDTH))
        self.film = nn.Linear(WIDTH * len(self.fields), 2 * channels, bias=False)
        nn.init.zeros_(self.film.weight)
        self.names: Tensor
        self.register_buffer("names", torch.zeros(num_classes, dtype=torch.int64))

    def name(self, classes: Sequence[str]) -> None:
        """The classes whose names texts are to be without, as many as the model has."""
        self.names = torch.tensor([hash_of(joined_form(name)) for name in classes], device=self.names.device)

    @property
    def by_field(self) -> Iterator[tuple[str, Any]]:
        """Each field and what encodes it."""
        return zip(self.fields, self.parts, strict=True)

    @property
    def columns(self) -> list[int]:
        """Numbers of a row that belong to each field."""
        return [PARTS[kind].columns for kind in self.fields.values()]

    def encode(self, said: Sequence[Said] | None, count: int) -> Tensor:
        """What is said of `count` samples as rows float32 [count, E] on the CPU, NaN where a field is missing; None:
        nothing of any.
        """
        if said is None:
            return torch.full((count, sum(self.columns)), torch.nan)
        assert len(said) == count
        names = frozenset(self.names.tolist())
        return torch.cat([part.read([one.get(name) for one in said], names) for name, part in self.by_field], 1)

    def linear(self, rows: Tensor) -> dict[str, Tensor]:
        """By field what a linear classifier can read of rows, float32 [n, c]; the last number says that it is
        missing.
        """
        found = {}
        for (name, part), column in zip(self.by_field, rows.split(self.columns, 1), strict=True):
            gone = column[:, :1].isnan()
            found[name] = torch.cat([part.linear(column.nan_to_num(0)).masked_fill(gone, 0), gone.float()], 1)
        return found

    def forward(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """rows: None where all fields are missing."""
        if rows is None and not torch.is_grad_enabled():  # the same numbers, and a smaller graph to export
            encoded = self.missing.flatten().expand(z.shape[0], -1)
        else:
            rows = z.new_full((z.shape[0], sum(self.columns)), torch.nan, dtype=torch.float32) if rows is None else rows
            parts = zip(self.parts, self.missing, rows.split(self.columns, 1), strict=True)
            # every part takes part in the graph, whatever is missing: ranks have to agree about gradients
            encoded = torch.cat([_or(missing, part(x.nan_to_num(0)), x) for part, missing, x in parts], 1)
        gamma, beta = self.film(encoded.relu()).chunk(2, 1)
        return z * (1 + gamma) + beta


def _or(missing: Tensor, encoded: Tensor, column: Tensor) -> Tensor:
    return torch.where(column[:, :1].isnan(), missing.to(encoded.dtype), encoded)


def has_side(model: nn.Module) -> bool:
    """Whether a model takes side inputs."""
    return getattr(model, "side", None) is not None


def inputs(model: Any, batch: Batch) -> tuple[Tensor, ...]:
    """What a model is called with for a batch: its images and, if it takes any, its side inputs."""
    if not has_side(model):
        return (batch.images,)
    return batch.images, model.side.encode(batch.side, len(batch)).to(batch.images.device, non_blocking=True)


def dropping(batches: Iterator[Batch], share: float, seed: int) -> Iterator[Batch]:
    """The same batches, a `share` of their samples without side inputs. Which these are depends on seed and position
    alone: on any number of ranks, and after any resume, they are the same.
    """
    for batch in batches:
        if batch.side is None or not share:
            yield batch
            continue
        positions = batch.positions.cpu().numpy()
        drawn = uniforms(1, fold(np.full(len(positions), key(seed, _SALT), np.uint64), positions))[:, 0]
        kept = zip(batch.side, drawn.tolist(), strict=True)
        yield replace(batch, side=tuple({} if chance < share else said for said, chance in kept))


def fault_of(kind: FieldKind, value: Any) -> str | None:
    """Why a value is none of a kind; None if it is one."""
    if kind == "number" and not is_number(value):
        return "is no number"
    if kind == "category" and isinstance(value, list):
        return "is a list of texts"
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def value_text(value: Any) -> str:
    """A value of a category as text: 148 and 148.0 are one."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def hash_of(text: str) -> int:
    """63 bits, never 0."""
    return (name_key(text) & _INT63) or 1


def scrubbed(text: str, names: frozenset[int]) -> list[str]:
    """The words of a text in their plain form, without those that are, alone or up to four together, the name of a
    class: whatever their case, spelling or number (xfer/spelling.py). names: by `hash_of`.
    """
    found, at = _words(text), 0
    left: list[str] = []
    while at < len(found):
        runs = range(min(_LONGEST, len(found) - at), 0, -1)
        named = next((count for count in runs if hash_of("".join(found[at : at + count])) in names), 0)
        left += [] if named else [found[at]]
        at += named or 1
    return left


def _words(text: str) -> list[str]:
    return [form for word in re.split(r"[\W_]+", text) if word for form in words(word)]


def joined_form(name: str) -> str:
    """The words of a class's name, without what is between them."""
    return "".join(_words(name))


def _joined(value: Any) -> str:
    return ". ".join(value) if isinstance(value, list) else str(value)


@lru_cache(maxsize=_KEPT)
def _text_vector(text: str, names: frozenset[int]) -> Tensor:
    """float32 [DIMS] whose numbers are about 1 in size; NaN where no word is left."""
    left = scrubbed(text, names)
    return hash_text(left) * DIMS**0.5 if left else torch.full((DIMS,), torch.nan)
