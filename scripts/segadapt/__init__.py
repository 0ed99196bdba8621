"""SegAdapt as an installed command; the code itself lies two folders up, or in `tree/` when it is installed."""

__version__ = "0.1.0"
