"""Labelling the target in a round of CBST: score maps on the disk, thresholds from them, labels from both. Resumable."""

import json
import os
from functools import lru_cache, partial

import numpy as np
import torch
from tqdm import tqdm

from dataset.loader import sequential_loader
from dataset.reading import image_size
from dataset.self_training import FitLongerSide, ScaleImage
from dataset.spatial_prior import load_prior

from . import distributed
from .device import autocast
from .loaders import target_dataset
from .pictures import save_colours
from .pseudo_labels import (
    CoarseProbabilities,
    ConfidenceHistograms,
    FullSizeLogits,
    bytes_of,
    check_disk,
    class_thresholds,
    global_threshold,
    load_maps,
    save_maps,
    select,
)
from .run import NotFiniteError
from .state import write_json


@torch.inference_mode()
def label_target(args, portion, network, device):
    """Pseudo-labels of all target images, as `pseudo_labels/<name>.png` in the round's directory; what is there stays.

    Returns the ids of rare classes: {"rare": [...], "priority": [...]}.
    """
    network.eval()
    crst = args.protocol == "crst"
    predictor = FullSizeLogits(args.test_flipping) if crst else CoarseProbabilities(args.test_flipping, args.test_steps)
    dataset = target_dataset(args, ScaleImage(args.eval_scale) if crst else FitLongerSide(args.test_scales))
    prior = partial(spatial_prior, args, device) if args.with_prior else None
    if len({label_path(args, record) for record in dataset.records}) < len(dataset.records):
        raise ValueError("two target images have the same file name, so their pseudo-labels would overwrite each other")
    found = os.path.join(args.snapshot_dir, "thresholds.json")
    if not os.path.exists(found) or args.lr_weight_ent:
        write_maps(args, dataset, predictor, network, device)
    if not os.path.exists(found):
        histograms = ConfidenceHistograms(args.num_classes, args.ds_rate, device)
        share = dataset.records[distributed.rank() :: distributed.world_size()]
        for record in progress(share, "confidence"):
            histograms.add(scores_of(args, predictor, record, prior, device))
        record_thresholds(args, portion, histograms.reduce(), found)
    with open(found) as file:
        report = json.load(file)
    thresholds, alpha = torch.tensor(report["thresholds"], device=device), args.lr_weight_ent or None
    os.makedirs(os.path.join(args.snapshot_dir, "pseudo_labels"), exist_ok=True)
    missing = [record for record in dataset.records if not os.path.exists(label_path(args, record))]
    distributed.wait_for_all()  # all processes have seen the same before one writes
    if missing:
        write_maps(args, dataset, predictor, network, device, missing)
    for record in progress(missing[distributed.rank() :: distributed.world_size()], "labels"):
        label = select(scores_of(args, predictor, record, prior, device), thresholds, alpha)
        save_colours(label_path(args, record), label.cpu().numpy(), args.num_classes)
    distributed.wait_for_all()
    return {"rare": report["rare"], "priority": report["priority"]}


def write_maps(args, dataset, predictor, network, device, wanted=None):
    """The network's low-resolution output for the `wanted` records (default: all) that have none on the disk yet.

    Raises:
        NotFiniteError: the network gives something else than numbers.
    """
    folder = os.path.join(args.snapshot_dir, "maps")
    os.makedirs(folder, exist_ok=True)
    records = dataset.records
    dataset.records = [record for record in wanted or records if not os.path.exists(map_path(args, record))]
    missing, first = dataset.records, True
    distributed.wait_for_all()  # all processes share out the same list
    loader = sequential_loader(dataset, args.num_workers, distributed.rank(), distributed.world_size())
    for batch in progress(loader, "scores"):
        with autocast(args, device):
            maps = predictor.maps(network, batch["image"].to(device, non_blocking=True))
        if not maps.isfinite().all():
            raise NotFiniteError(f"{batch['path'][0]}: the network's scores are not finite; try --amp bf16 or off")
        if first and distributed.is_main():
            print(f"score maps: {check_disk(folder, len(missing), bytes_of(maps))}")
        first = False
        save_maps(os.path.join(folder, f"{batch['name'][0]}.npz"), maps, batch["image"].shape[-2:])
    dataset.records = records
    distributed.wait_for_all()


def scores_of(args, predictor, record, prior, device):
    """Full-size scores (C,H,W) of an image from its map on the disk."""
    maps, shape = load_maps(map_path(args, record))
    size = image_size(record.image)[::-1]
    scores = predictor.scores(maps.to(device), size, shape)
    return scores if prior is None else scores * prior(size)


def record_thresholds(args, portion, histograms, path):
    """Thresholds, how much of each class they keep, and which classes are rare, into the round's `thresholds.json`."""
    sizes, cbst = histograms.sizes(), args.protocol == "cbst"
    # The MXNet code's lists begin with a zero: one a class, and one more for all together.
    if args.kc_policy == "cb":
        thresholds, counted = class_thresholds(histograms, portion, int(cbst)), sizes + (sizes > 0) * int(cbst)
    else:
        extra = (args.num_classes + 1) * int(cbst)
        thresholds, counted = global_threshold(histograms, portion, extra), sizes
    share = counted / counted.sum() if cbst else (histograms.pixels / histograms.pixels.sum()).cpu()
    below = (share < args.mine_thresh).nonzero().flatten()
    rarest = share.argsort(stable=True)
    report = {
        "portion": portion,
        "thresholds": thresholds.tolist(),
        "pixels_predicted": histograms.pixels.tolist(),
        "rare": rarest[: args.mine_id_number if cbst else len(below)].tolist(),
        "priority": below.tolist() if cbst else [],
    }
    if distributed.is_main():
        write_json(report, path)
    distributed.wait_for_all()


@lru_cache(1)
def _prior(path, num_classes, size, device):
    return torch.from_numpy(np.asarray(load_prior(path, num_classes, size[::-1]))).to(device)


def spatial_prior(args, device, size):
    """The prior (C,H,W) on the device, read once."""
    return _prior(prior_path(args), args.num_classes, tuple(size), device)


def prior_path(args):
    """The file of --prior, or the one beside the source data: ours, or the authors'."""
    names = (f"spatial_prior_{args.num_classes}.mat", "prior_array.mat")
    usual = [os.path.join(args.data_dir, name) for name in names]
    return args.prior or next((path for path in usual if os.path.exists(path)), usual[0])


def label_path(args, record):
    return os.path.join(args.snapshot_dir, "pseudo_labels", f"{os.path.splitext(record.name)[0]}.png")


def map_path(args, record):
    return os.path.join(args.snapshot_dir, "maps", f"{record.name}.npz")


def progress(items, title):
    return tqdm(items, desc=title, unit="image", disable=not distributed.is_main())
