"""Count the classes in each image: what FADA's class-balanced and DAFormer's rare class sampling need.

    python scripts/class_statistics.py --source gta5 --data-dir ./data/GTA5 --output ./data/GTA5/class_statistics_19.json
    python scripts/class_statistics.py --source synthia --data-dir ./data/SYNTHIA --num-classes 16
    python scripts/class_statistics.py --source folder --data-dir ./data/field            # the classes of its classes.json

train_fada.py and train_dacs.py find the file beside the data, and make the statistics themselves when there are none.
train_fada.py reads FADA's gtav_label_info.p and synthia_label_info.p too (--from converts one to JSON; they count no pixels,
which rare class sampling needs).
"""

import os
import sys
from collections.abc import Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from dataset.class_statistics import classes_with_pixels, count_pixels, files_of_classes, read_statistics, write_statistics
from dataset.segmentation import build_dataset
from utils import flags
from utils.errors import exit_with_message
from utils.old_names import OLD_NAMES
from utils.outputs import check_file, is_json_with
from utils.parser import Flags, Parser


def get_arguments(arguments: Sequence[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["class_statistics.py"])
    flags.add_label_flags(parser)
    parser.add_argument("--output", metavar="FILE", help="a file, or a folder for it (default: the data's root)")
    parser.add_argument("--from", dest="original", metavar="FILE", help="convert this label_info.p instead of reading labels")
    args = flags.complete_label_flags(parser.parse_args(arguments))
    output, name = args.output or args.data_dir, f"class_statistics_{args.num_classes}.json"
    return args.with_values(output=os.path.join(output, name) if os.path.isdir(output) or output.endswith("/") else output)


def main(args: Flags) -> None:
    check_file("--output", args.output, is_json_with("num_classes", "classes", "file_to_label"))
    classes = flags.classes_of(args)
    if args.original:
        _, file_to_label = read_statistics(args.original, classes)
        pixels = None
    else:
        place = flags.part(args, args.source)
        dataset = build_dataset(args.source, args.data_dir, args.source_split, args.data_list, classes, part=place)
        pixels = count_pixels(dataset, args.workers)
        file_to_label = classes_with_pixels(pixels)
    write_statistics(args.output, file_to_label, classes, pixels)
    for name, files in zip(classes.names, files_of_classes(file_to_label, len(classes)), strict=True):
        print(f"{name:>14} in {len(files)} of {len(file_to_label)} images")
    print(f"written to {args.output}")


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
