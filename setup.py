"""Install SegAdapt as one package with the command `segadapt`: pip install . (or pip install -e . of a checkout)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

requirements = Path("requirements.txt").read_text().split()
version = re.search(r'__version__ = "(.*)"', Path("scripts/segadapt/__init__.py").read_text())[1]
# No module called `utils` or `model` of ours may lie beside those of others, so the checkout as it is becomes segadapt/tree.
below = ["", *find_packages(include=["model*", "dataset*", "utils*"]), "scripts", "scripts.recipes"]

setup(
    name="segadapt",
    version=version,
    description="Unsupervised domain adaptation of semantic segmentation: published methods, one framework",
    license="MIT",
    python_requires=">=3.11",
    packages=["segadapt", *(f"segadapt.tree.{name}".rstrip(".") for name in below)],
    package_dir={
        "segadapt": "scripts/segadapt",
        **{f"segadapt.tree.{name}".rstrip("."): name.replace(".", "/") or "." for name in below},
    },
    package_data={"segadapt.tree.scripts": ["*.sh"], "segadapt.tree.scripts.recipes": ["*.sh"]},
    entry_points={"console_scripts": ["segadapt = segadapt.command:main"]},
    install_requires=requirements,
    extras_require={"timm": ["timm>=1.0.20"], "wandb": ["wandb"]},
)
