"""The command line: a parser that forgives spelling, and the types of values. Only argparse is imported here."""

import argparse
import difflib


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The script's docstring as it is, and every flag's default behind its help."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == "":
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse with the originals' habits: `--lambda_target` is `--lambda-target`, `--IW_ratio` is `--iw-ratio`, a switch
    may carry a value (`--multi True`), and an unknown flag is answered with the nearest known one."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)
        self.without_effect = {}

    def add_switch(self, *names, help, group=None, default=False):
        """Add a flag that is on or off; `--flag`, `--flag True` and `--flag False` all work."""
        (group or self).add_argument(*names, nargs="?", const=True, default=default, type=truth, metavar="BOOL", help=help)

    def also(self, name, *aliases):
        """Let a flag that is declared already be called by other names too."""
        action = self._option_string_actions[name]
        action.option_strings = [*action.option_strings, *aliases]
        self._option_string_actions.update(dict.fromkeys(aliases, action))

    def describe(self, **help):
        """Say what shared flags mean in this script, where that is something else."""
        for name, text in help.items():
            self._option_string_actions["--" + name.replace("_", "-")].help = text

    def accept_without_effect(self, *names, takes_value=False):
        """Accept flags of an original that do nothing here, so that old command lines work; parsing says so."""
        for name in names:
            self.without_effect[name] = takes_value
            self.add_argument(
                name,
                nargs=None if takes_value else "?",
                const=None if takes_value else True,
                default=argparse.SUPPRESS,
                help="accepted; no effect here",
            )

    def error(self, message):
        """Exit with status 2 and one line; the usage would be forty."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists all flags)\n")

    def parse_args(self, args=None, namespace=None):
        parsed = super().parse_args(args, namespace)
        for name in self.without_effect:
            destination = name.lstrip("-").replace("-", "_")
            if hasattr(parsed, destination):
                print(f"note: {name} has no effect here")
                delattr(parsed, destination)
        return parsed

    def parse_known_args(self, args=None, namespace=None):
        if args is None:
            import sys

            args = sys.argv[1:]
        known = {_plain(option): option for option in self._option_string_actions}
        parsed, unknown = super().parse_known_args([_respell(word, known) for word in args], namespace)
        flags = [word.split("=")[0] for word in unknown if word.startswith("--")]
        if flags:
            near = difflib.get_close_matches(_plain(flags[0]), known, n=1)
            self.error(f"unknown flag {flags[0]}" + (f"; did you mean {known[near[0]]}?" if near else ""))
        return parsed, unknown


def _plain(option):
    return option.lower().replace("_", "-")


def _respell(word, known):
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return known.get(_plain(flag), flag) + equals + value


def data_set(word):
    """The name of a data set in lower case; `gta` is `gta5`."""
    return {"gta": "gta5"}.get(word.lower(), word.lower())


def truth(word):
    """`True`, `yes`, `1`, ... to a bool."""
    if word.lower() in ("true", "yes", "1", "on"):
        return True
    if word.lower() in ("false", "no", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")


def size(word):
    """`1280,720` to (1280, 720), width first; `500` is a square."""
    try:
        width, height = (int(part) for part in (word.split(",") if "," in word else (word, word)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a size; write WIDTH,HEIGHT, for example 1280,720") from None
    if width < 1 or height < 1:
        raise argparse.ArgumentTypeError(f"{word!r}: both sides must be positive")
    return width, height


def numbers(word):
    """`0.5,1.0` to (0.5, 1.0)."""
    try:
        return tuple(float(part) for part in word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a list of numbers such as 0.5,1.0") from None


def positive(word):
    """A whole number of at least 1."""
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{word} is not at least 1")
    return value
