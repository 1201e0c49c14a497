"""How much arithmetic training takes, and how much a device can do: the two sides of model FLOP utilisation
(Chowdhery et al. 2022, appendix B).

Shapes: B samples, C channels, T frames.
"""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.diffusion.objective import Schedule, velocity_loss
from model.network.unet import AccompanimentUNet, UNetConfig

# Dense bfloat16 FLOP/s that makers state, by a part of the device's name; the longer name stands before the shorter one.
BF16_PEAKS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L4": 1.21e14,
    "A10G": 7.0e13,
    "RTX 4090": 1.65e14,
}
_PRODUCT = {"cpu": 1_024, "cuda": 8_192}
_PRODUCTS = 5


def training_flops(config: UNetConfig, frames: int) -> int:
    """Floating-point operations of one sample, forward and backward: matrix products and convolutions, a multiply and an add each counted.

    Nothing is computed: the network lies on the meta device.
    """
    with torch.device("meta"):
        network = AccompanimentUNet(config).to("meta")  # with its tables, which are made on the CPU
        schedule = Schedule(steps=config.diffusion_steps).to("meta")
        latent_BCT = torch.empty(1, config.latent_channels, frames)
        valid_BT = torch.ones(1, frames, dtype=torch.bool)
        t_B = torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            vocal = network.encode_vocal(latent_BCT, valid_BT)
            velocity_loss(lambda x_BCT, t_B: network(x_BCT, t_B, vocal), schedule, latent_BCT, latent_BCT, t_B, valid_BT).loss.backward()
    return counter.get_total_flops()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that the device reaches at best: what its maker states where that is known, else the fastest of some matrix products here.

    On CPUs that others use too a measured peak is too low, and a utilisation above 1 is possible.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, peak in BF16_PEAKS.items():
            if part in name:
                return peak
    size = _PRODUCT[device.type]
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    fastest = float("inf")
    for _ in range(_PRODUCTS):
        began = time.monotonic()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.monotonic() - began)
    return 2 * size**3 / fastest
