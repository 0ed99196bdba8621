"""The endless loader: a pure function of seed and position."""

import multiprocessing

import pytest
import torch

from dataset.loader import EndlessLoader, LoaderStateError, sequential_loader
from dataset.segmentation import build_dataset
from dataset.transforms import Compose, RandomBlur, RandomImageScale, RandomMirror, Resize


@pytest.fixture(scope="module")
def data(mini_data):
    transform = Compose([RandomMirror(), Resize((48, 24)), RandomBlur()])
    return build_dataset("gta5", mini_data / "GTA5", "all", transform=transform)


def take(loader, count):
    return [next(loader) for _ in range(count)]


def same(first, second):
    return len(first) == len(second) and all(
        a["name"] == b["name"] and torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"])
        for a, b in zip(first, second, strict=True)
    )


def test_batches_are_uint8_samples_with_their_files(data):
    batch = next(EndlessLoader(data, 2, seed=0))
    assert batch["image"].shape == (2, 3, 24, 48) and batch["image"].dtype == torch.uint8
    assert batch["label"].shape == (2, 24, 48) and batch["label"].dtype == torch.uint8
    assert len(batch["name"]) == 2 and all(path.endswith(name) for path, name in zip(batch["path"], batch["name"], strict=True))


def test_every_epoch_is_a_fresh_permutation(data):
    names = [batch["name"][0] for batch in take(EndlessLoader(data, 1, seed=3), 27)]
    epochs = [names[start : start + 9] for start in (0, 9, 18)]
    assert all(sorted(epoch) == sorted(names[:9]) and len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_number_of_workers_changes_nothing_and_the_seed_does(data):
    alone = take(EndlessLoader(data, 2, seed=0), 8)
    assert same(alone, take(EndlessLoader(data, 2, seed=0, num_workers=2), 8))
    assert not same(alone, take(EndlessLoader(data, 2, seed=1), 8))


@pytest.mark.parametrize("workers", (0, 2))
def test_continues_from_a_saved_position(data, workers):
    whole = take(EndlessLoader(data, 2, seed=0), 9)
    loader = EndlessLoader(data, 2, seed=0, num_workers=workers)
    take(loader, 3)
    saved = loader.state_dict()
    assert saved["position"] == 3
    take(loader, 4)
    fresh = EndlessLoader(data, 2, seed=0, num_workers=workers)
    fresh.load_state_dict(saved)
    assert same(take(fresh, 6), whole[3:])
    loader.load_state_dict(saved)  # also in the loader that has gone on
    assert same(take(loader, 6), whole[3:])


def test_workers_end_when_the_run_does(data):
    others = set(multiprocessing.active_children())  # of earlier tests, some about to end

    def workers():
        return set(multiprocessing.active_children()) - others

    loader = EndlessLoader(data, 2, seed=0, num_workers=2)
    whole = take(EndlessLoader(data, 2, seed=0), 4)
    assert same(take(loader, 2), whole[:2]) and len(workers()) == 2
    loader.close()
    assert not workers()
    assert same(take(loader, 2), whole[2:])


def test_augmentation_differs_between_visits_of_an_image(data):
    loader = EndlessLoader(data, 1, seed=0)
    seen = {}
    for batch in take(loader, 45):
        seen.setdefault(batch["name"][0], set()).add(batch["image"].numpy().tobytes())
    assert all(len(versions) > 1 for versions in seen.values())


def test_two_processes_read_what_one_with_the_doubled_batch_reads(data):
    one = take(EndlessLoader(data, 4, seed=0), 5)
    parts = [take(EndlessLoader(data, 2, seed=0, rank=rank, world_size=2), 5) for rank in (0, 1)]
    for step, whole in enumerate(one):
        assert torch.equal(whole["image"], torch.cat([part[step]["image"] for part in parts]))


def test_a_batch_shares_its_draws_even_across_processes(mini_data):
    transform = RandomImageScale((48, 24))
    data = build_dataset("gta5", mini_data / "GTA5", "all", transform=transform)
    shapes = [
        [batch["image"].shape for batch in take(EndlessLoader(data, 3, 0, rank=rank, world_size=2), 12)] for rank in (0, 1)
    ]
    assert shapes[0] == shapes[1] and len(set(shapes[0])) == 3


def test_batches_larger_than_the_data_set(data):
    batch = next(EndlessLoader(data, 20, seed=0))
    assert len(batch["name"]) == 20 and len(set(batch["name"])) == 9


@pytest.mark.parametrize("other, message", [({"seed": 1}, "seed 0, not 1"), ({"batch_size": 3}, "global batch size 2, not 3")])
def test_a_position_of_another_stream_is_refused(data, other, message):
    saved = EndlessLoader(data, 2, seed=0).state_dict()
    with pytest.raises(LoaderStateError, match=message):
        EndlessLoader(data, **{"batch_size": 2, "seed": 0, **other}).load_state_dict(saved)


@pytest.mark.parametrize("workers", (0, 1))
def test_errors_name_the_file_also_from_a_worker(workers, mini_data, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images/00001.png").write_bytes((mini_data / "GTA5/images/00001.png").read_bytes()[:500])
    loader = EndlessLoader(build_dataset("gta5", tmp_path, "all"), 1, seed=0, num_workers=workers)
    with pytest.raises(OSError, match="images/00001.png: cannot be read"):
        next(loader)


def test_validation_reads_every_sample_once_over_all_processes(data):
    names = [[batch["name"][0] for batch in sequential_loader(data, rank=rank, world_size=2)] for rank in (0, 1)]
    assert [len(part) for part in names] == [5, 4]
    assert sorted(names[0] + names[1]) == [record.name for record in data.records]
