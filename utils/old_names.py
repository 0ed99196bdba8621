"""What flags are called in the originals, and the originals' flags that do nothing here: command lines from their READMEs run
with only the script's name changed. `--help` shows today's names alone."""

from collections.abc import Mapping
from typing import NamedTuple


class OldNames(NamedTuple):
    """Of one script. Names are in lower case with dashes, as the parser compares them.

    Attributes:
        aliases: {old name: today's name}.
        ignored: {flag without effect: whether it always takes a value}.
        configuration: what the names of the original's configuration files begin with, which --config passes over.
    """

    aliases: Mapping[str, str] = {}
    ignored: Mapping[str, bool] = {}
    configuration: str | None = None


def _switches(*names: str) -> dict[str, bool]:
    return dict.fromkeys(names, False)


def _valued(*names: str) -> dict[str, bool]:
    return dict.fromkeys(names, True)


# Understood by every training script that has the flag.
SHARED = {
    "--source-dataset": "--source",
    "--data-dir-source": "--data-dir",
    "--split": "--source-split",
    "--input-size-source": "--input-size",
    "--crop-size": "--input-size",
    "--target-crop-size": "--input-size-target",
    "--backbone": "--model",
    "--pretrained-ckpt-file": "--restore-from",
    "--lr": "--learning-rate",
    "--poly-power": "--power",
    "--iter-max": "--num-steps",
    "--iter-stop": "--num-steps-stop",
    "--batch-size-per-gpu": "--batch-size",
    "--seed": "--random-seed",
    "--data-loader-workers": "--num-workers",
    "--save-dir": "--snapshot-dir",
    "--checkpoint-dir": "--snapshot-dir",
    "--show-num-images": "--save-num-images",
}
# MaxSquare's flags that had no effect there, or are always on here.
MAXSQUARE = _valued(
    "--imagenet-pretrained",
    "--pin-memory",
    "--bn-momentum",
    "--base-size",
    "--target-base-size",
    "--resize",
    "--numpy-transform",
)

OLD_NAMES = {
    "train_adaptsegnet.py": OldNames(
        SHARED,
        # The last three are ADVENT's.
        _switches("--is-training", "--not-restore-last", "--random-scale", "--tensorboard", "--random-train")
        | _valued("--ignore-label", "--log-dir", "--exp-suffix", "--viz-every-iter"),
    ),
    "train_clan.py": OldNames(
        SHARED, _switches("--is-training", "--not-restore-last") | _valued("--ignore-label", "--iter-size")
    ),
    "train_source.py": OldNames(
        SHARED
        | {
            "--dataset": "--source",
            "--data-root-path": "--data-dir",
            "--list-path": "--data-list",
            "--continue-training": "--resume",
        },
        MAXSQUARE | _valued("--target-crop-size"),
    ),
    "train_maxsquare.py": OldNames(
        SHARED | {"--dataset": "--target", "--data-root-path": "--data-dir-target", "--list-path": "--data-list-target"},
        MAXSQUARE | _valued("--gamma", "--exp-tag", "--exp", "--init-round"),
    ),
    "train_fada.py": OldNames(SHARED),
    "train_dacs.py": OldNames(SHARED, _switches("--save-images") | _valued("--name", "--gpus"), configuration="config"),
    "train_cbst.py": OldNames(
        SHARED
        | {
            "--dataset": "--source",
            "--data-src": "--source",
            "--data-root": "--data-dir",
            "--data-src-dir": "--data-dir",
            "--data-src-list": "--data-list",
            "--dataset-tgt": "--target",
            "--data-root-tgt": "--data-dir-target",
            "--data-tgt-dir": "--data-dir-target",
            "--data-tgt-train-list": "--data-list-target",
            "--weights": "--restore-from",
            "--output": "--snapshot-dir",
            "--save": "--snapshot-dir",
            "--batch-images": "--batch-size",
            "--base-lr": "--learning-rate",
            "--seed-int": "--random-seed",
            "--randseed": "--random-seed",
            "--prefetch-threads": "--num-workers",
            "--gpus": "--gpu",
            "--num-round": "--num-rounds",
            "--epoch-per-round": "--epochs-per-round",
            "--epr": "--epochs-per-round",
            "--step-tgt-port": "--tgt-port-step",
            "--step-src-port": "--src-port-step",
            "--src-sampling-policy": "--source-sample-policy",
            "--mine-chance": "--mine-port",
            "--train-scale-src": "--scale-rate-range",
        },
        _switches("--rm-prob", "--debug", "--eval-training", "--pin-memory", "--no-cudnn", "--backward-do-mirror")
        | _valued(
            "--to-epoch",
            "--split-tgt",
            "--self-training-script",
            "--log-file",
            "--rare-cls-num",
            "--kc-value",
            "--ignore-label",
            "--data-tgt-test-list",
            "--test-image-size",
            "--test-scale",
            "--cache-images",
            "--kvstore",
            "--prefetcher",
            "--phase",
        )
        # The other scripts' flags that count steps; CBST counts epochs.
        | _valued("--num-steps", "--num-steps-stop", "--save-pred-every"),
    ),
    "evaluate_cityscapes.py": OldNames(
        {
            "-m": "--restore-from",
            "--model-path": "--restore-from",
            "--pretrained-ckpt-file": "--restore-from",
            "--weights": "--restore-from",
            "--backbone": "--model",
            "--data-root": "--data-dir",
            "--data-root-path": "--data-dir",
            "--list-path": "--data-list",
            "--split": "--set",
            "--crop-size": "--input-size",
            "--test-flipping": "--flip",
            "--test-scale": "--scales",
            "--checkpoint-dir": "--save",
            "--output": "--save",
            "--gpus": "--gpu",
            "--data-loader-workers": "--num-workers",
            "--prefetch-threads": "--num-workers",
        },
        _switches("--is-training", "--image-summary", "--save-predictions", "--save-output-images")
        | _valued("--ignore-label", "--phase", "--base-size", "--batch-size-per-gpu"),
    ),
    "predict.py": OldNames({"--data-loader-workers": "--num-workers"}),
    "class_statistics.py": OldNames({"-d": "--data-dir", "-o": "--output", "--split": "--source-split"}),
    "spatial_prior.py": OldNames({"-d": "--data-dir", "--split": "--source-split"}),
    "adabn.py": OldNames(
        {"--seed": "--random-seed", "--data-loader-workers": "--num-workers"} | {"--target-crop-size": "--input-size-target"}
    ),
}
