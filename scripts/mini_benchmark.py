"""What the demo compares, as values: blocks and rows of its table, the flags of each, lengths, and gaps between the domains.

A new method is one entry in METHODS. docs/mini_benchmark.md says how the settings were chosen, and on what.
"""

from typing import NamedTuple

from dataset.mini import PARTS

SIZE = "192,96"
# The settings below were chosen on data of other seeds; none of them has seen these scenes.
DATA_SEED = 13

# Images of 192x96 and a few hundred steps need other settings than the published ones, which are the scripts' defaults.
ON_CPU = "--num-workers 0 --device cpu"
SHARED = f"--batch-size 4 --amp bf16 --channels-last {ON_CPU}"
SCRATCH = "--restore-from none --optim Adam --learning-rate 1e-3 --warmup 50 --weight-decay 1e-4 --multi"
ADAPTATION = "--updates clean --learning-rate 1e-3"
CBST = (
    "--power 0.9 --init-tgt-port 0.3 --init-src-port 0.5 --max-src-port 0.5 --num-rounds 3 --epochs-per-round 1 "
    "--mine-port 0 --eval-scale 1 --random-scale False"
)
CBST_WEIGHTS = "round1/gta52cityscapes_round1_epoch1.pth"
ADVERSARIAL = "--lambda-adv-target1 0.006 --lambda-adv-target2 0.03 --learning-rate-D 2e-4"
DACS = "--color-jitter False --blur False --learning-rate 3e-3 --teacher-momentum 0.95"
DACS_WEIGHTS = "checkpoint-iter{steps}.pth"

TWIN = "MiniResNet18Twin"


class Block(NamedTuple):
    """Rows with one treatment of BatchNorm.

    Attributes:
        suffix: of its rows' names.
        batch_norm: --batch-norm while training.
        target_statistics: whether the target's statistics are estimated before scoring.
        baselines: the rows that its methods are compared with, beside source-only.
    """

    title: str
    suffix: str
    batch_norm: str
    target_statistics: bool
    baselines: tuple[str, ...]


BLOCKS = {
    "own": Block(
        title="each domain's own BatchNorm statistics: the batch's while training, the target's at test time",
        suffix="",
        batch_norm="frozen-affine",
        target_statistics=True,
        baselines=("AdaBN", "control"),
    ),
    "frozen": Block(
        title="the source's BatchNorm statistics, frozen while training and at test time",
        suffix=", frozen",
        batch_norm="frozen",
        target_statistics=False,
        baselines=("control, frozen",),
    ),
}


class Row(NamedTuple):
    """A row of the table that is trained.

    Attributes:
        script: what trains it.
        flags: its settings.
        weights: its last weights in its run directory; `{steps}` are the profile's.
        model: its network.
        block: of BLOCKS; rows trained from scratch have no use for it.
        share: of the control's steps, how many it takes (FADA: in each of its two stages); None: the profile's adaptation steps
            (CBST: as many as its rounds have images for).
    """

    script: str
    flags: str
    weights: str = "GTA5_{steps}.pth"
    model: str = "MiniResNet18"
    block: str = "own"
    share: float | None = None


FROM_SCRATCH = {
    "source-only": Row("train_source.py", SCRATCH),
    "source-only, twin": Row("train_source.py", f"{SCRATCH} --lambda-seg 1", model=TWIN),  # both classifiers are main ones
    "oracle": Row("train_source.py", SCRATCH, weights="CITYSCAPES_{steps}.pth"),
}
# Rows with the weights of another one and the target's BatchNorm statistics.
ADABN = {"AdaBN": "source-only", "AdaBN, twin": "source-only, twin"}
# Rows that go on from one of those.
METHODS = {
    "control": Row("train_source.py", "--multi --gaussian-blur False --random-mirror False"),
    "MaxSquare+IW": Row("train_maxsquare.py", "--target-mode IW_maxsquare --lambda-target 2 --IW-ratio 0.5 --val-every 0"),
    "AdaptSegNet": Row("train_adaptsegnet.py", ADVERSARIAL),
    "CLAN": Row("train_clan.py", "--lambda-adv 0.6 --learning-rate-D 2e-4 --random-scale False", model=TWIN),
    "FADA": Row(
        "train_fada.py",
        "--batch-size 8 --temperature 1 --lambda-adv 0.001 --learning-rate-D 2e-4 --color-jitter 0,0,0,0 "
        "--class-balanced False --scale-range 0.8,1.25",
        weights="distill/model_iter{steps:06d}.pth",
        share=0.5,
    ),
    "CBST": Row("train_cbst.py", CBST, weights=CBST_WEIGHTS),
    "DACS": Row("train_dacs.py", DACS, weights=DACS_WEIGHTS, share=1),
}
VARIANTS = {
    "AdvEnt": Row("train_adaptsegnet.py", f"--target-loss adversarial-entropy {ADVERSARIAL}"),
    "MinEnt": Row("train_maxsquare.py", "--target-mode entropy --lambda-target 0.2 --val-every 0"),
    "CBST-SP": Row("train_cbst.py", f"{CBST} --with-prior", weights=CBST_WEIGHTS),
    "CBST+MRKLD": Row("train_cbst.py", f"{CBST} --mr-weight-kld 0.1", weights=CBST_WEIGHTS),
    "DACS+RCS": Row("train_dacs.py", f"{DACS} --rare-class-sampling 0.1 --rare-class-pixels 50", weights=DACS_WEIGHTS, share=1),
    "DACS+mask": Row(
        "train_dacs.py", f"{DACS} --mask --mask-block 16 --mask-ratio 0.3 --lambda-mask 0.3", weights=DACS_WEIGHTS, share=1
    ),
}
FROZEN = {f"{name}{BLOCKS['frozen'].suffix}": row._replace(block="frozen") for name, row in METHODS.items()}
ROWS = {**METHODS, **VARIANTS, **FROZEN}

HEADLINE = (
    "source-only",
    "AdaBN",
    "control",
    "MaxSquare+IW",
    "AdaptSegNet",
    "FADA",
    "CBST",
    "DACS",
    "source-only, twin",
    "AdaBN, twin",
    "CLAN",
)
ALL = (*HEADLINE, *VARIANTS, *FROZEN, "oracle")
# Trained without the target: the same for every gap.
WITHOUT_TARGET = ("source-only", "source-only, twin", "control", "control, frozen")


class Profile(NamedTuple):
    """How long a demo is.

    Attributes:
        control_steps: as many as the longest methods take: CBST in its two rounds, FADA in its two stages, and DACS.
        images: the numbers of images of source train, source val, target train and target val.
    """

    seeds: tuple[int, ...]
    source_steps: int
    adaptation_steps: int
    control_steps: int
    images: tuple[int, int, int, int]


FULL = Profile(seeds=(0, 1, 2), source_steps=800, adaptation_steps=150, control_steps=500, images=(800, 160, 600, 160))
QUICK = Profile(seeds=(0,), source_steps=400, adaptation_steps=60, control_steps=200, images=(400, 60, 200, 60))


def alone(part: str) -> str:
    """The flags of make_mini_data.py for a gap of one part, at full strength."""
    return " ".join(["--strength 1", *(f"--part {name}={int(name == part)}" for name in PARTS)])


# Targets of the sweep, by name: the flags of make_mini_data.py. 0.5 is the gap of the other tables.
GAPS = {
    "strength 0.25": "--strength 0.25",
    "strength 0.5": "--strength 0.5",
    "strength 0.75": "--strength 0.75",
    **{f"{part} alone": alone(part) for part in PARTS},
}
