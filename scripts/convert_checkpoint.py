"""Turn a checkpoint of any original into the format of another that can hold its network.

python scripts/convert_checkpoint.py gta_rna-a1_cls19_s8_ep-0000.params resnet38.pth --to plain
python scripts/convert_checkpoint.py snapshots/fada/distill/model_iter020000.pth fada.pth --to maxsquare
python scripts/convert_checkpoint.py snapshots/cbst38/round5/X.pth X.params --to mxnet

plain       a state dict: AdaptSegNet, CLAN, CRST, ADVENT, and what the scripts here write
maxsquare   {"state_dict": ...} with `module.` before each name, as MaxSquare's solvers load it
fada        feature_extractor and classifier apart (FADA's networks)
mxnet       CBST's .params (ResNet-38)
paddle      .pdparams: the reproductions of AdaptSegNet and CLAN in PaddlePaddle
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from model import WeightsError, load_model
from model.checkpoint_formats import FORMATS, MXNET, PADDLE
from model.mxnet import write_params
from model.paddle import write_pdparams
from model.segmenter import Segmenter
from utils.errors import exit_with_message
from utils.parser import Parser
from utils.state import save_tensors

WRITERS = {each.name: (each.framework, each.write) for each in FORMATS if each.write is not None}


def get_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", help="checkpoint, recognised by its content")
    parser.add_argument("target", metavar="OUT", help="file to write; it must not exist yet")
    parser.add_argument("--to", required=True, choices=sorted(WRITERS), help="format to write")
    parser.add_argument("--model", metavar="NAME", help="network, where the checkpoint alone cannot tell")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    if os.path.exists(args.target):
        raise WeightsError(f"{args.target}: exists already; remove it or choose another name")
    model = load_model(args.source, args.model)
    print(model.load_report)
    framework, write = WRITERS[args.to]
    try:
        contents = write(model)
    except WeightsError as error:
        raise WeightsError(f"{args.source}: cannot be written --to {args.to}: {error}") from error
    if framework == MXNET:
        write_params(args.target, contents)
    elif framework == PADDLE:
        write_pdparams(args.target, contents)
    else:
        save_tensors(contents, args.target, for_originals=True)
    note_what_is_lost(args, model)
    print(f"written to {args.target}: {model.settings['name']}, {model.settings['num_classes']} classes, as {args.to}")


def note_what_is_lost(args: argparse.Namespace, model: Segmenter) -> None:
    """Say so if the written file alone would be taken for another network, or no longer names the classes."""
    again = load_model(args.target)
    if _nature(again) != _nature(model):
        print(f"note: the file alone would be read as {again.settings['name']}; use it with --model {model.settings['name']}")
    if again.classes != model.classes:
        print("note: this format holds no class names; a run's args.json in the folder of the file would give them")


def _nature(network: Segmenter) -> tuple:
    return network.normalize.convention, network.style, network.aspp_branches, {norm.eps for norm in network.norms()}


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
