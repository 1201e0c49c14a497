"""Inference: a vocal's windows, the network batched over requests, and how the band's pitch and level meet the vocal's."""
