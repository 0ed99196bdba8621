"""The command line: a parser that forgives spelling and knows the originals' names, and flags that stay as parsed."""

import argparse
import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .config import as_words, differences, read_flags, tell
from .errors import RunError
from .old_names import OldNames


class Flags(argparse.Namespace):
    """Parsed flags. They stay as they are: what is derived from them has a name of its own (see `utils.plan`)."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"flags do not change after parsing: derive what you need from args.{name}")

    def with_values(self, **values: Any) -> "Flags":
        """A copy in which these flags have other values: the settings of one stage or round."""
        unknown = values.keys() - vars(self).keys()
        if unknown:
            raise AttributeError(f"no such flag: {', '.join(sorted(unknown))}")
        return Flags(**{**vars(self), **values})


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The script's docstring as it is, and every flag's default behind its help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == "":
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse with the originals' habits: `--lambda_target` is `--lambda-target`, `--IW_ratio` is `--iw-ratio`, a switch
    may carry a value (`--multi True`), an original's name of a flag is understood, and an unknown flag is answered with the
    nearest known one."""

    def __init__(self, description: str | None, old_names: OldNames | None = None) -> None:
        super().__init__(description=description, usage="%(prog)s [flags]", formatter_class=HelpFormatter, allow_abbrev=False)
        self.old_names = old_names or OldNames()
        self.config_file = ""  # before errors of its values
        self.left_out_of_config = {"resume", "wandb", "config"}

    def leave_out_of_config(self, *names: str) -> None:
        """Let --config pass over flags of which nothing is left to say: what they ask for stands in other flags' values, or
        belongs to the start of one run."""
        self.left_out_of_config.update(names)

    def add_switch(self, *names: str, help: str, group: Any = None, default: bool | None = False) -> None:
        """Add a flag that is on or off; `--flag`, `--flag True` and `--flag False` all work."""
        (group or self).add_argument(*names, nargs="?", const=True, default=default, type=truth, metavar="BOOL", help=help)

    def describe(self, **help: str) -> None:
        """Say what shared flags mean in this script, where that is something else."""
        for name, text in help.items():
            self._option_string_actions["--" + name.replace("_", "-")].help = text

    def error(self, message: str) -> Any:
        """Exit with status 2 and one line."""
        self.exit(2, f"{self.prog}: error: {self.config_file}{message} (--help lists all flags)\n")

    def parse_known_args(  # type: ignore[override]  # argparse declares one signature for each way to call it
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = self._without_ignored(list(sys.argv[1:] if args is None else args))
        flags = self._option_string_actions
        known = {old: new for old, new in self.old_names.aliases.items() if new in flags}
        known |= {_plain(option): option for option in flags}
        words = [_respell(word, known) for word in words]
        if "--config" in flags:
            words, namespace = self._with_config(words, namespace)
        noted = dict(vars(namespace or argparse.Namespace()))
        parsed, unknown = super().parse_known_args(words, namespace)
        given = differences(noted, vars(parsed))
        if given:
            tell(f"flags given beside --config: {given}")
        wrong = next((word.split("=")[0] for word in unknown if word.startswith("--")), None)
        if wrong:
            near = difflib.get_close_matches(_plain(wrong), known, n=1)
            self.error(f"unknown flag {wrong}" + (f"; did you mean {known[near[0]]}?" if near else ""))
        return parsed, unknown

    def _with_config(self, words: list[str], namespace: Any) -> tuple[list[str], Any]:
        """The words without --config, and the flags of the run that it names."""
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        finder.add_argument("--config")
        try:
            found, words = finder.parse_known_args(words)
        except argparse.ArgumentError as error:
            self.error(str(error))
        if found.config is None:
            return words, namespace
        original = self.old_names.configuration
        if original and os.path.basename(found.config).startswith(original):
            tell(f"note: --config {found.config} has no effect here: what it says is the default")
            return words, namespace
        try:
            values = read_flags(found.config)
            left_out = self.left_out_of_config | ({"device"} if any(word.startswith("--gpu") for word in words) else set())
            noted_words, nothing = as_words(
                found.config, {key: value for key, value in values.items() if key not in left_out}, self._actions
            )
        except RunError as error:
            self.error(str(error))
        self._tell_new_flags(found.config, values)
        self.config_file = f"--config {found.config}: "
        noted, _ = super().parse_known_args(noted_words, argparse.Namespace(**nothing))
        self.config_file = ""
        return words, noted

    def _tell_new_flags(self, path: str, values: Mapping[str, Any]) -> None:
        dests = {action.dest: action.option_strings[0] for action in self._actions if action.default != argparse.SUPPRESS}
        new = [option for dest, option in dests.items() if dest not in values and dest not in self.left_out_of_config]
        if new:
            tell(f"note: {path} says nothing of {', '.join(new)}: as usual today")

    def _without_ignored(self, words: list[str]) -> list[str]:
        """Drop the originals' flags that do nothing here, with their values, and say so."""
        kept: list[str] = []
        while words:
            word = words.pop(0)
            name, equals, _ = word.partition("=")
            takes_value = self.old_names.ignored.get(_plain(name)) if name.startswith("--") else None
            if takes_value is None:
                kept.append(word)
                continue
            print(f"note: {_plain(name)} has no effect here")
            if words and not equals and (takes_value or not words[0].startswith("-")):
                words.pop(0)
        return kept


def _plain(option: str) -> str:
    return option.lower().replace("_", "-")


def _respell(word: str, known: dict[str, str]) -> str:
    if not word.startswith("-"):
        return word
    flag, equals, value = word.partition("=")
    return known.get(_plain(flag), flag) + equals + value


def data_set(word: str) -> str:
    """The name of a data set in lower case; `gta` is `gta5`."""
    return {"gta": "gta5"}.get(word.lower(), word.lower())


def truth(word: str) -> bool:
    """`True`, `yes`, `1`, ... to a bool."""
    if word.lower() in ("true", "yes", "1", "on"):
        return True
    if word.lower() in ("false", "no", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")


def resume(word: str) -> bool | str:
    """`auto` (resume if there is a state, else start), or a truth."""
    return "auto" if word.lower() == "auto" else truth(word)


def wandb_project(word: str) -> str:
    """The name of a project, if there is the package that sends something to it."""
    if "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
        raise argparse.ArgumentTypeError("the package wandb is missing: pip install wandb")
    return word


def size(word: str) -> tuple[int, int]:
    """`1280,720` to (1280, 720), width first; `500` is a square."""
    try:
        width, height = (int(part) for part in (word.split(",") if "," in word else (word, word)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a size; write WIDTH,HEIGHT, for example 1280,720") from None
    if width < 1 or height < 1:
        raise argparse.ArgumentTypeError(f"{word!r}: both sides must be positive")
    return width, height


def numbers(word: str) -> tuple[float, ...]:
    """`0.5,1.0` to (0.5, 1.0), all at least 0."""
    try:
        found = tuple(float(part) for part in word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a list of numbers such as 0.5,1.0") from None
    if not all(0 <= value < float("inf") for value in found):
        raise argparse.ArgumentTypeError(f"{word!r}: all numbers must be at least 0")
    return found


def positive_numbers(word: str) -> tuple[float, ...]:
    """As `numbers`, all above 0."""
    found = numbers(word)
    if not all(found):
        raise argparse.ArgumentTypeError(f"{word!r}: all numbers must be above 0")
    return found


def scale_range(word: str) -> tuple[float, ...]:
    """`0.5,1.5` to (0.5, 1.5): two numbers above 0, the larger one last."""
    found = positive_numbers(word)
    if len(found) != 2 or found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{word!r} is not a range LOW,HIGH such as 0.5,1.5")
    return found


def device(word: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a device known here: auto, cpu, cuda or cuda:N")
    return word


def count(word: str) -> int:
    """A whole number of at least 0."""
    value = int(word)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{word} is below 0")
    return value


def positive(word: str) -> int:
    """A whole number of at least 1."""
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{word} is not at least 1")
    return value


def not_negative(word: str) -> float:
    """A number of at least 0."""
    value = float(word)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word} is not a number of at least 0")
    return value


def above_zero(word: str) -> float:
    """A number above 0."""
    value = float(word)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word} is not a number above 0")
    return value


def share(word: str) -> float:
    """A number above 0, at most 1."""
    value = float(word)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{word} is not above 0 and at most 1")
    return value


def seed(word: str) -> int:
    """A whole number that seeds every random generator: from 0 to 2^31 - 1."""
    value = int(word)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{word} is not between 0 and {2**31 - 1}")
    return value


def fraction(word: str) -> float:
    """A number from 0 to 1."""
    value = float(word)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{word} is not between 0 and 1")
    return value
