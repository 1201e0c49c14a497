"""The network: soft alignment attention, the U-Net that uses it, and what a pass costs in FLOP."""
