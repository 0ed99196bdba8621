"""Hand a trained network on: as a PyTorch program (.pt2) and as ONNX, with the normalisation inside.

    python scripts/export.py snapshots/multi/GTA5_150000.pth --pt2 model.pt2
    python scripts/export.py snapshots/multi/GTA5_150000.pth --onnx model.onnx                    # needs the extra [export]

The exported network takes uint8 RGB images (N,3,H,W), or with --layout NHWC (N,H,W,3), and gives uint8 maps of train ids
(N,H,W) of the same height and width. N, H and W may be anything, H and W from 32 on. Which classes the ids are stands in the
file: `classes.json` among the extra files of the .pt2, the metadata `classes` of the ONNX model.

Each file is run on images of two sizes and compared with the network here before it is written. What differs is reported;
more than 0.1 % of the pixels is an error.

To use them, without this repository:

    ids = torch.export.load("model.pt2").module()(images)
    (ids,) = onnxruntime.InferenceSession("model.onnx").run(None, {"images": images.numpy()})
"""

import io
import json
import os
import sys
import warnings
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from torch import Tensor, nn

from model import describe, load_model, upsample
from model.segmenter import Segmenter
from utils.errors import RunError, exit_with_message
from utils.evaluation import classes_of_network, main_logits
from utils.files import make_parent, write_bytes
from utils.outputs import check_file
from utils.parser import Flags, Parser, size

LAYOUTS = ("NCHW", "NHWC")
# Pixels where two classes are all but equally likely may turn out either way, for kernels add in different orders.
MOST_DIFFERENT = 1e-3
EXTRA = "needs the extra [export]: pip install onnx onnxscript onnxruntime"


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", metavar="FILE", help="a checkpoint, recognised by its content")
    parser.add_argument("--model", metavar="NAME", help="network, where the checkpoint alone cannot tell")
    parser.add_argument("--pt2", metavar="FILE", help="write a program of torch.export to this file")
    parser.add_argument("--onnx", metavar="FILE", help="write an ONNX model to this file")
    parser.add_argument("--layout", choices=LAYOUTS, type=str.upper, default="NCHW", help="order of the images' dimensions")
    parser.add_argument("--input-size", type=size, default=(256, 128), metavar="W,H", help="of the images that are compared")
    args = Flags(**vars(parser.parse_args(arguments)))
    if not args.pt2 and not args.onnx:
        parser.error("where to? Name a file with --pt2 or --onnx")
    if min(args.input_size) < 32:
        parser.error(f"--input-size {args.input_size[0]},{args.input_size[1]}: images of at least 32x32 are needed")
    return args


def main(args: Flags) -> None:
    for flag, path in (("--pt2", args.pt2), ("--onnx", args.onnx)):
        check_file(flag, path)
    if args.onnx:
        check_extra()
    model = load_model(args.checkpoint, args.model)
    if not model.exports:
        raise RunError(
            f"{args.checkpoint}: {model.settings['name']} cannot be exported for images of any size (docs/backbones.md)"
        )
    print(f"{describe(model)}; {model.load_report}")
    network = ClassMap(model, args.layout).eval()
    names = json.dumps(list(classes_of_network(model).names))
    program = exported(network, args)
    if args.pt2:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={"classes.json": names})
        content.seek(0)
        compare(args.pt2, network, torch.export.load(content).module(), args)
        write(args.pt2, content.getvalue())
    if args.onnx:
        encoded = to_onnx(program, names)
        compare(args.onnx, network, run_onnx(encoded), args)
        write(args.onnx, encoded)


class ClassMap(nn.Module):
    """A network as others want it: uint8 images in, uint8 train ids (N,H,W) out.

    Args:
        layout: "NCHW" or "NHWC", of the images.
    """

    def __init__(self, model: Segmenter, layout: str) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, images: Tensor) -> Tensor:
        if self.layout == "NHWC":
            images = images.permute(0, 3, 1, 2)
        logits = main_logits(self.model, images)
        return upsample(logits, images.shape[-2:]).argmax(1).to(torch.uint8)


def sample_images(args: Flags, factor: float = 1.0, count: int = 2) -> Tensor:
    """Smooth random pictures of `factor` times --input-size in the layout that is exported, the same ones every time."""
    width, height = (max(32, int(side * factor)) for side in args.input_size)
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous() if args.layout == "NHWC" else images


def exported(network: ClassMap, args: Flags) -> torch.export.ExportedProgram:
    """The program, for any number and size of images.

    Raises:
        RunError: PyTorch cannot export this network.
    """
    any_size = torch.export.Dim.DYNAMIC
    sides = (1, 2) if args.layout == "NHWC" else (2, 3)
    shapes = ({0: any_size, sides[0]: any_size, sides[1]: any_size},)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(network, (sample_images(args),), dynamic_shapes=shapes)
    except Exception as error:
        raise RunError(f"{args.checkpoint}: torch.export cannot export this network ({first_line(error)})") from error


def to_onnx(program: torch.export.ExportedProgram, names: str) -> bytes:
    """The program as an ONNX model, weights and names of the classes included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["ids"], verbose=False)
    assert converted is not None  # it is only with a path that nothing is returned
    converted.model.metadata_props["classes"] = names
    return converted.model_proto.SerializeToString()


def run_onnx(encoded: bytes) -> Callable[[Tensor], Tensor]:
    """An ONNX model as a function of images, computed by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (ids,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        return torch.from_numpy(ids)

    return run


@torch.no_grad()
def compare(path: str, network: ClassMap, run: Callable[[Tensor], Tensor], args: Flags) -> None:
    """See that the exported network says what the network here says, on images of two sizes and numbers.

    Raises:
        RunError: it does not.
    """
    for factor, count in ((1.0, 2), (1.37, 1)):
        images = sample_images(args, factor, count)
        expected, found = network(images), run(images)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise RunError(
                f"{path}: not written, it gives {tuple(found.shape)} {found.dtype}, not {tuple(expected.shape)} uint8"
            )
        different = float((found != expected).double().mean())
        print(f"{path}: input {tuple(images.shape)}, {100 * different:.3f} % of the pixels differ from PyTorch")
        if different > MOST_DIFFERENT:
            raise RunError(f"{path}: not written, {100 * different:.2f} % of the pixels differ from PyTorch")


def check_extra() -> None:
    """See that ONNX's packages are there.

    Raises:
        RunError: one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RunError(f"--onnx {EXTRA} ({error.name} is missing)") from error


def write(path: str, content: bytes) -> None:
    make_parent(path)
    write_bytes(path, content)
    print(f"{path}: {len(content) / 2**20:.1f} MiB")


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
