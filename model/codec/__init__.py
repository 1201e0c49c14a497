"""Codecs: waveforms to latents and back. `load` finds one by name; `base` is what all of them promise."""
