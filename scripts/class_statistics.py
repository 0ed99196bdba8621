"""Find out which class is in which image: what FADA's class-balanced sampling needs.

    python scripts/class_statistics.py --source gta5 --data-dir ./data/GTA5 --output ./data/GTA5/class_statistics_19.json
    python scripts/class_statistics.py --source synthia --data-dir ./data/SYNTHIA --num-classes 16
    python scripts/class_statistics.py --source folder --data-dir ./data/field            # the classes of its classes.json

train_fada.py finds the file beside the data, reads FADA's gtav_label_info.p and synthia_label_info.p too (--from converts
one to JSON), and makes the statistics itself when there are none.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from dataset.catalogue import class_set, data_set
from dataset.class_statistics import count_classes, files_of_classes, read_statistics, write_statistics
from dataset.segmentation import build_dataset
from utils.arguments import Parser, add_label_flags, set_label_defaults
from utils.start import exit_with_message


def get_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    add_label_flags(parser)
    parser.also("--city-name", "--condition")
    parser.add_argument("--output", "-o", metavar="FILE", help="a file, or a folder for it (default: the data's root)")
    parser.add_argument("--from", dest="original", metavar="FILE", help="convert this label_info.p instead of reading labels")
    args = set_label_defaults(parser.parse_args(arguments))
    args.classes = data_set(args.source, args.data_dir).classes or class_set(args.num_classes)
    name = f"class_statistics_{len(args.classes)}.json"
    args.output = args.output or os.path.join(args.data_dir, name)
    if os.path.isdir(args.output) or args.output.endswith("/"):
        args.output = os.path.join(args.output, name)
    return args


def main(args: Namespace) -> None:
    if args.original:
        _, file_to_label = read_statistics(args.original, args.classes)
    else:
        dataset = build_dataset(
            args.source, args.data_dir, args.source_split, args.data_list, args.classes, part=args.city_name
        )
        file_to_label = count_classes(dataset, args.workers)
    write_statistics(args.output, file_to_label, args.classes)
    for name, files in zip(args.classes.names, files_of_classes(file_to_label, len(args.classes)), strict=True):
        print(f"{name:>14} in {len(files)} of {len(file_to_label)} images")
    print(f"written to {args.output}")


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
