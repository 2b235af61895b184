from typing import Generic, Iterator, TypeVar

Item = TypeVar("Item")


class DataLoader(Generic[Item]):
    """One item at a time, in order."""

    def __init__(self, dataset, collate_fn, **_) -> None:
        self.dataset = dataset
        self.collate = collate_fn

    def __iter__(self) -> Iterator[Item]:
        for item in self.dataset:
            yield self.collate([item])
