"""Networks with the golden weights."""

import torch
from fill import fill


def filled_state(network, prefix="", seed=0, bn3=1.0):
    """The golden state dict for `network`: see fill.py; `bn3` scales the last norm of every block, `prefix` the names."""
    shapes = {prefix + key: tuple(value.shape) for key, value in network.state_dict().items()}
    state = {key.removeprefix(prefix): torch.from_numpy(value) for key, value in fill(shapes, seed).items()}
    for key in state:
        if key.endswith("bn3.weight"):
            state[key] = state[key] * torch.tensor(bn3, dtype=torch.float32)
    return state


def filled(network, **options):
    network.load_state_dict(filled_state(network, **options))
    return network
