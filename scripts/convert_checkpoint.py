"""Turn a checkpoint of any original into the format of another that can hold its network.

python scripts/convert_checkpoint.py gta_rna-a1_cls19_s8_ep-0000.params resnet38.pth --to plain
python scripts/convert_checkpoint.py snapshots/fada/distill/model_iter020000.pth fada.pth --to maxsquare
python scripts/convert_checkpoint.py snapshots/cbst38/round5/X.pth X.params --to mxnet

plain       a state dict: AdaptSegNet, CLAN, CRST, ADVENT, and what the scripts here write
maxsquare   {"state_dict": ...} with `module.` before each name, as MaxSquare's solvers load it
fada        feature_extractor and classifier apart (FADA's networks)
mxnet       CBST's .params (ResNet-38)
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from model import WeightsError, load_model, to_fada
from model.mxnet import write_params
from model.resnet38 import ResNet38, to_mxnet
from utils.arguments import Parser
from utils.start import exit_with_message
from utils.state import save_atomically


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", help="checkpoint, recognised by its content")
    parser.add_argument("target", metavar="OUT", help="file to write; it must not exist yet")
    parser.add_argument("--to", required=True, choices=("plain", "maxsquare", "fada", "mxnet"), help="format to write")
    parser.add_argument("--model", metavar="NAME", help="network, where the checkpoint alone cannot tell")
    return parser.parse_args(arguments)


def main(args):
    if os.path.exists(args.target):
        raise WeightsError(f"{args.target}: exists already; remove it or choose another name")
    model = load_model(args.source, args.model)
    print(model.load_report)
    state = model.state_dict()
    if args.to == "mxnet":
        if not isinstance(model, ResNet38):
            raise WeightsError(f"{args.source}: holds {model.settings['name']}; CBST's format is for ResNet-38 only")
        write_params(args.target, to_mxnet(state))
    elif args.to == "fada":
        if len(model.head_names) != 1:
            raise WeightsError(f"{args.source}: has {len(model.head_names)} classifiers; FADA's format holds one")
        if model.normalize.convention == "caffe":
            raise WeightsError(f"{args.source}: {model.settings['name']} has Caffe's colours, which FADA's networks have not")
        save_atomically(to_fada(model, 0), args.target, for_originals=True)
    elif args.to == "maxsquare":
        save_atomically(
            {"state_dict": {f"module.{key}": value for key, value in state.items()}}, args.target, for_originals=True
        )
    else:
        save_atomically(state, args.target, for_originals=True)
    note_what_is_lost(args, model)
    print(f"written to {args.target}: {model.settings['name']}, {model.settings['num_classes']} classes, as {args.to}")


def note_what_is_lost(args, model):
    """Say so if the written file alone would be taken for another network than the one that was read."""

    def nature(network):
        branches = [head.branches for head in network.heads() if hasattr(head, "branches")]
        return network.normalize.convention, getattr(network, "style", None), branches, {norm.eps for norm in network.norms()}

    again = load_model(args.target)
    if nature(again) != nature(model):
        print(f"note: the file alone would be read as {again.settings['name']}; use it with --model {model.settings['name']}")


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
