"""Data sets on disk to endless batches of uint8 samples.

Start with `dataset.segmentation.build_dataset` and `dataset.loader.EndlessLoader`. Nothing is imported here, so that what needs
no PyTorch (`dataset.catalogue`, `dataset.layouts`) loads without it.
"""
