"""Diffusion: the objective and its schedule, the samplers, and distillation into few steps."""
