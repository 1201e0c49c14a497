"""Random weights in the format of musicnn's published VGG."""

import numpy as np


def random_weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    found = {"dense__kernel": random.standard_normal((256, 50)) / 16, "dense__bias": random.standard_normal(50)}
    for layer in range(1, 6):
        width = 1 if layer == 1 else 128
        found[f"{layer}CNN__kernel"] = random.standard_normal((3, 3, width, 128)) / np.sqrt(9 * width)
        found[f"{layer}CNN__bias"] = 0.1 * random.standard_normal(128)
    for layer in range(6):
        name, width = "batch_normalization" + (f"_{layer}" if layer else ""), 128 if layer else 1
        found |= {f"{name}__{part}": random.standard_normal(width) for part in ("beta", "moving_mean")}
        found |= {f"{name}__{part}": random.uniform(0.5, 2, width) for part in ("gamma", "moving_variance")}
    return {name: value.astype(np.float32) for name, value in found.items()}
