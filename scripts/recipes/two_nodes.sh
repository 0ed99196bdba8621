#!/usr/bin/env bash
# One run on two machines of four GPUs. On each: HEAD=name-of-the-first-machine bash scripts/recipes/two_nodes.sh
# --batch-size of FADA is of all processes and domains together; the data lie at the same place on both.
exec torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id fada \
    train_fada.py --stage all --batch-size 16 --snapshot-dir snapshots/fada_two_nodes --resume auto --fast
