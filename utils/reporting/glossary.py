"""Words for readers who never heard of the field: what the rows are, and what the terms mean."""

import re

# What a row is, by the beginning of its name in small letters; the longest one that fits counts.
ROWS = {
    "source-only": "trained on the labelled source images alone and used on the target as it is: the starting point",
    "source": "trained on the labelled source images alone and used on the target as it is: the starting point",
    "control": "the starting point, trained on for as many steps as the methods, still on the source alone: "
    "shows what mere extra training gives",
    "adabn": "the starting point with its brightness and contrast statistics (BatchNorm) measured anew on target images; "
    "nothing is trained",
    "maxsquare": "pushes the network to be certain on target images, and counts rare classes as much as common ones",
    "minent": "pushes the network to be certain on target images by lowering the entropy of its answers",
    "advent": "a second network tells certain from uncertain maps by their entropy; the first learns to fool it",
    "adaptsegnet": "a second network tries to tell label maps of the two domains apart; the first learns to fool it",
    "clan": "as AdaptSegNet, but presses hardest where two classifiers disagree, since there a class is not yet aligned",
    "fada": "a second network tells domain and class of each pixel's features; then a fresh network is trained on what "
    "the adapted one says",
    "cbst": "self-training in rounds: learns from its own most confident answers on the target, a fixed share of each class",
    "mrkld": "self-training in rounds (CBST) with a penalty on being too confident",
    "lrent": "self-training in rounds (CBST) with soft labels",
    "dacs": "pastes objects of source images, with their true labels, into target images that it has labelled itself",
    "oracle": "trained on the target's true labels, which adaptation never sees: roughly what could be reached at best",
}

TERMS = {
    "Semantic segmentation": "giving every pixel of an image a class, such as road, person or sky.",
    "Source, target": "the source is the domain with labels to learn from (often rendered by a game engine, where labels "
    "come for free); the target is the one that matters and has images but no labels to learn from.",
    "Unsupervised domain adaptation": "making a network that was trained on the source work on the target, with the help of "
    "unlabelled target images.",
    "IoU": "intersection over union of a class: of all pixels that are of the class or were taken for it, the share "
    "where both agree. 100% is perfect; small or rare classes are hard.",
    "mIoU": "the mean of the IoU over all classes. Every class counts the same, however few pixels it has.",
    "Points": "a gain from 40% to 45% is 5 points.",
    "Seed": "the number that fixes what is random in a training. Several seeds show how much of a difference is luck.",
    "BatchNorm statistics": "the mean and spread of what each layer sees, stored in the network. They differ between the "
    "domains, and using the target's own is by itself a simple adaptation (AdaBN).",
    "Pseudo-label": "a label that the network gave itself, used as if it were true.",
}


def about_row(name: str) -> str:
    """What a row of this name usually is, "" for an unknown name."""
    plain = re.sub(r"[^a-z]+", "", name.lower())
    fitting = [word for word in ROWS if plain.startswith(re.sub(r"[^a-z]+", "", word))]
    return ROWS[max(fitting, key=len)] if fitting else ""


def knows_target_labels(name: str) -> bool:
    """Whether a row of this name was trained on the target's labels."""
    return name.lower().startswith("oracle")


def about_script(script: str) -> str:
    """What a run of this training script is."""
    return about_row(script.removeprefix("train_"))
