"""Endless, seeded iteration that can be continued from one number."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from .errors import DataError
from .reading import keep_freed_memory

# So many samples in a row may be damaged, with `skip_bad`, before that is an error.
MOST_IN_A_ROW = 8
GOLDEN_RATIO = 0x9E3779B97F4A7C15


class LoaderStateError(DataError):
    """A saved position belongs to another data set, seed or batch size."""


class SizedDataset(Protocol):
    """A data set whose samples are asked for by index, or by (index, seed, batch_seed)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


class ImageDataset(SizedDataset, Protocol):
    """One that tells which files its samples are from."""

    def path(self, index: int) -> str:
        """The file of the image."""


class Order(Protocol):
    """`order[k]` is the index of sample k of an endless stream."""

    def __getitem__(self, k: int) -> int: ...


class EndlessLoader:
    """Batches without end: a fresh permutation of the data set in every epoch, drawn from `seed`, or any given `order`
    (`order[k]` is the index of the stream's sample k).

    Sample k of the stream, with its augmentation, is a pure function of (seed, k): neither the number of workers nor an
    interruption changes it. Of `world_size` processes, number `rank` reads its share of each global batch, so that
    together they read what one process with a batch of `world_size * batch_size` would.

    `position` counts the batches handed out; together with the data it is the whole state.

    With `skip_bad` a sample that cannot be read is replaced by the next one of the stream that can be (with the draws of the
    one that it replaces). Batches then have `damaged`: for each sample the errors of those before it, a line each.

    Raises (from `next`): whatever the data set raises, naming the file.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        order: Order | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.order, self.skip_bad = order, skip_bad
        self.dataset, self.batch_size, self.seed, self.num_workers = dataset, batch_size, seed, num_workers
        self.rank, self.world_size = rank, world_size
        self.position = 0
        self._batches: Iterator[dict[str, Any]] | None = None
        self._epoch = -1  # of the permutation drawn last
        self._order: list[int] = []

    def __iter__(self) -> "EndlessLoader":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batches is None:
            self._batches = iter(self._loader())
        batch = next(self._batches)
        self.position += 1
        return batch

    def close(self) -> None:
        """Let the workers end; the next batch would start new ones."""
        self._batches = None

    def _loader(self) -> DataLoader:
        return DataLoader(
            cast(Dataset, _Readable(self.dataset) if self.skip_bad else self.dataset),
            batch_sampler=_Stream(self),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # or it would draw from the generator that dropout uses
        )

    def keys(self, position: int) -> list[tuple[int, int, int]]:
        """The data set keys (index, seed, batch_seed) of this process's batch number `position`."""
        first = (position * self.world_size + self.rank) * self.batch_size
        return [(self._index(k), _mix(self.seed, k), _mix(~self.seed, position)) for k in range(first, first + self.batch_size)]

    def _replacements(self, position: int) -> list[list[int]]:
        """For each sample of a batch the indices of those that may replace it, the next of the stream first."""
        first = (position * self.world_size + self.rank) * self.batch_size
        return [[self._index(k + i) for i in range(1, MOST_IN_A_ROW)] for k in range(first, first + self.batch_size)]

    def next_files(self) -> list[str]:
        """The images of the batch that is handed out next."""
        return [self.dataset.path(index) for index, _, _ in self.keys(self.position)]

    def _index(self, k: int) -> int:
        if self.order is not None:
            return self.order[k]
        epoch, place = divmod(k, len(self.dataset))
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch) % 2**63)
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset), generator=generator).tolist()
        return self._order[place]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a saved position.

        Raises:
            LoaderStateError: it was saved with another data set, seed or global batch size.
        """
        for key, value in self._identity().items():
            if state[key] != value:
                raise LoaderStateError(f"the saved data position belongs to {key.replace('_', ' ')} {state[key]}, not {value}")
        self.position = state["position"]
        self._batches = None

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "number_of_images": len(self.dataset),
            "global_batch_size": self.batch_size * self.world_size,
        }


class _Stream(Sampler):
    """The keys of one batch after the other, from the loader's position on."""

    def __init__(self, loader: EndlessLoader) -> None:
        self.loader, self.start = loader, loader.position

    def __iter__(self) -> Iterator[list[tuple]]:
        position = self.start
        while True:
            keys = self.loader.keys(position)
            yield list(zip(keys, self.loader._replacements(position), strict=True)) if self.loader.skip_bad else keys
            position += 1


class _Readable(Dataset):
    """The samples of a data set, each replaced by another one if it cannot be read.

    Asked for by ((index, seed, batch_seed), indices of the others).
    """

    def __init__(self, dataset: SizedDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[tuple[int, int, int], list[int]]) -> dict[str, Any]:
        (index, *seeds), others = key
        damaged: list[str] = []
        for each in (index, *others):
            try:
                return {**self.dataset[(each, *seeds)], "damaged": "\n".join(damaged)}
            except DataError as error:
                damaged.append(str(error))
        raise DataError(f"{len(damaged)} samples in a row are damaged: {'; '.join(damaged)}")


def sequential_loader(dataset: SizedDataset, num_workers: int = 0, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Every sample once, in order, one at a time; each process reads its share, and none is repeated to fill up."""
    share: Subset = Subset(cast(Dataset, dataset), range(rank, len(dataset), world_size))
    return DataLoader(
        share,
        batch_size=1,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )


def _mix(seed: int, number: int) -> int:
    """Two integers to one well-scattered 64-bit seed (splitmix64)."""
    value = (seed * GOLDEN_RATIO + number + 1) * GOLDEN_RATIO % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
