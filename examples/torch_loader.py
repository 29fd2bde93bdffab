"""Frames of neural films for PyTorch: python examples/torch_loader.py film.mkv ..."""

import sys
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset

import vcfilter


class Films(IterableDataset):
    """Pictures of films, (3, height, width) float in 0 to 1."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = torch.utils.data.get_worker_info()
        mine = self.names[worker.id :: worker.num_workers] if worker else self.names
        for name in mine:
            with vcfilter.open(name) as container:
                for frame in container.decode(video=0):
                    rgb = torch.from_numpy(frame.to_ndarray(format="rgb24"))  # height, width, 3
                    yield rgb.permute(2, 0, 1).float() / 255


def main(*names: str) -> None:
    for batch in DataLoader(Films(list(names)), batch_size=4):
        print(tuple(batch.shape), f"mean {batch.mean():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
