"""Training of the embedded codec, spectral and adversarial."""
