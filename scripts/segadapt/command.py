"""segadapt COMMAND [flags]: one command over the scripts, which it starts as `python SCRIPT [flags]` would.

segadapt                     list the commands
segadapt train-clan --help   the manual of one
segadapt --version
segadapt --path [COMMAND]    where the scripts are, or one of them: torchrun "$(segadapt --path train-clan)" ...
segadapt --completion bash   for ~/.bashrc: eval "$(segadapt --completion bash)"
"""

import ast
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from . import __version__

HERE = Path(__file__).resolve().parent
SHORTER = {"evaluate_cityscapes": "evaluate", "compute_iou": "iou"}
COMPLETION = """\
_segadapt() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} flags=
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands} --help --version --path --completion" -- "$word"))
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    COMPREPLY=()
    [[ $word != -* ]] || COMPREPLY=($(compgen -W "$flags" -- "$word"))
}}
complete -o default -o bashdefault -F _segadapt segadapt
"""


def tree() -> Path:
    """The folder with the scripts: inside of an installed package, two folders up in a checkout."""
    installed = HERE / "tree"
    return installed if installed.is_dir() else HERE.parents[1]


def commands() -> dict[str, Path]:
    """{name: script}: what trains, what evaluates, and all in scripts/."""
    root = tree()
    scripts = [*sorted(root.glob("train_*.py")), *(root / f"{name}.py" for name in SHORTER), *sorted(root.glob("scripts/*.py"))]
    scripts = [script for script in scripts if script.is_file() and not script.name.startswith("_")]
    return {SHORTER.get(script.stem, script.stem.replace("_", "-")): script for script in scripts}


def overview() -> str:
    """The manual, and each command with the first line of its script's."""
    found = commands()
    width = max(map(len, found))
    lines = [f"    {name:{width}}  {_title(script)}" for name, script in found.items()]
    return "\n".join([(__doc__ or "").rstrip(), "", *lines])


def _title(script: Path) -> str:
    manual = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return manual.partition("\n")[0]


def completion() -> str:
    """A script for bash that completes commands and flags without starting anything."""
    found = commands()
    shared = _flags_in(tree() / "utils/flags.py")
    cases = []
    for name, script in found.items():
        flags = _flags_in(script) | (shared if "flags.add_" in script.read_text(encoding="utf-8") else set())
        cases.append(f'        {name}) flags="{" ".join(sorted(flags | {"--help"}))}" ;;')
    return COMPLETION.format(commands=" ".join(found), cases="\n".join(cases))


def _flags_in(path: Path) -> set[str]:
    return set(re.findall(r'"(--[a-zA-Z][\w-]*)"', path.read_text(encoding="utf-8")))


def main() -> None:
    words = sys.argv[1:]
    first, rest = (words[0], words[1:]) if words else ("--help", [])
    if first in ("--help", "-h", "help"):
        print(overview())
    elif first == "--version":
        print(f"segadapt {__version__}")
    elif first == "--path" and len(rest) < 2:
        print(_script(rest[0]) if rest else tree())
    elif first == "--completion" and rest == ["bash"]:
        print(completion(), end="")
    elif first == "--completion":
        _exit("--completion knows bash alone")
    else:
        _start(_script(first), rest)


def _script(name: str) -> Path:
    found = commands()
    if name.replace("_", "-") not in found:
        _exit(f"no command {name}; there are {', '.join(found)}")
    return found[name.replace("_", "-")]


def _start(script: Path, words: list[str]) -> NoReturn:
    # In place of this process, so that signals, exit status and everything else are the script's own.
    os.execv(sys.executable, [sys.executable, str(script), *words])


def _exit(message: str) -> NoReturn:
    sys.exit(f"segadapt: error: {message}")
