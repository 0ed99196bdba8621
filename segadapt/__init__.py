"""SegAdapt as an installed command; the code itself lies beside this folder, or in `tree/` when it is installed."""

__version__ = "0.1.0"
