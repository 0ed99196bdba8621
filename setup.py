"""Install SegAdapt's packages and scripts: pip install -e ."""

from glob import glob

from setuptools import find_packages, setup

with open("requirements.txt") as file:
    requirements = file.read().split()

setup(
    name="segadapt",
    version="0.1.0",
    description="Unsupervised domain adaptation of semantic segmentation: published methods, one framework",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["model", "model.*", "dataset", "dataset.*", "utils", "utils.*"]),
    py_modules=[*sorted(name[:-3] for name in glob("train_*.py")), "evaluate_cityscapes", "compute_iou"],
    install_requires=requirements,
)
