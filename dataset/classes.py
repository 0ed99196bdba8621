"""Classes, colours, and the tables between the raw ids of each data set and train ids."""

import numpy as np

IGNORED = 255

CLASS_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip

PALETTE = np.array(
    [
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
        (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ],
    np.uint8,
)  # fmt: skip

# The classes of the smaller label sets, as train ids of the 19. SYNTHIA has no terrain, truck and train worth the name; its
# second figure, and CrossCity's classes, leave out wall, fence and pole too.
SUBSET_16 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
SUBSET_13 = (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
SUBSETS = {19: tuple(range(19)), 16: SUBSET_16, 13: SUBSET_13}

# Cityscapes label id of each train id; GTA5 and CrossCity use the same ids.
TRAINID_TO_LABELID = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# SYNTHIA's class id of each train id (0 void, 13 parking, 14 road work and 22 lane marking have none).
TRAINID_TO_SYNTHIA = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)

RAW_IDS = {
    "gta5": TRAINID_TO_LABELID,
    "cityscapes": TRAINID_TO_LABELID,
    "crosscity": TRAINID_TO_LABELID,
    "synthia": TRAINID_TO_SYNTHIA,
}
# Raw ids that mean "no class" on purpose; anything else without a class is worth a warning from scripts/check_data.py.
VOID_IDS = {
    "gta5": (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 34, 255),
    "cityscapes": (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 255),
    "crosscity": (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 255),
    "synthia": (0, 13, 14, 22),
}


def subset(num_classes):
    """Train ids (of the 19) that make up the set of `num_classes` classes.

    Raises:
        ValueError: there is no such set.
    """
    if num_classes not in SUBSETS:
        raise ValueError(f"there is no set of {num_classes} classes; known: 19 (Cityscapes), 16 (SYNTHIA), 13 (CrossCity)")
    return SUBSETS[num_classes]


def class_names(num_classes):
    """The names of the `num_classes` classes in the order of their ids."""
    return tuple(CLASS_NAMES[train_id] for train_id in subset(num_classes))


def palette(num_classes):
    """(num_classes, 3) uint8 colours in the order of the ids."""
    return PALETTE[list(subset(num_classes))]


def label_table(name, num_classes=19):
    """uint8[256] look-up table from the raw ids of data set `name` to ids 0..num_classes-1, 255 where there is none.

    With 19 classes SYNTHIA keeps terrain, truck and train (CLAN's way); with 16 they are ignored (MaxSquare, FADA, CBST).

    Raises:
        ValueError: unknown data set or number of classes.
    """
    if name not in RAW_IDS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(RAW_IDS)}")
    table = np.full(256, IGNORED, np.uint8)
    for new_id, train_id in enumerate(subset(num_classes)):
        table[RAW_IDS[name][train_id]] = new_id
    return table


def identity_table(num_classes):
    """uint8[256] look-up table that keeps ids 0..num_classes-1 and ignores the rest: for labels made by a network."""
    table = np.full(256, IGNORED, np.uint8)
    table[:num_classes] = np.arange(num_classes)
    return table


def to_label_ids(train_ids, num_classes=19):
    """Ids 0..num_classes-1 to Cityscapes label ids, as its server wants them; anything else becomes 0 (unlabelled)."""
    table = np.zeros(256, np.uint8)
    table[:num_classes] = [TRAINID_TO_LABELID[train_id] for train_id in subset(num_classes)]
    return table[np.asarray(train_ids)]
