"""The shape of everything: audio, latents and segments (paper, section III-A)."""

SAMPLE_RATE_HZ = 44_100
AUDIO_CHANNELS = 2
HOP_SAMPLES = 2_048  # audio samples a latent frame
LATENT_CHANNELS = 64
SEGMENT_FRAMES = 1_024
SEGMENT_SAMPLES = SEGMENT_FRAMES * HOP_SAMPLES  # 2,097,152 samples = 47.554 s
FRAME_RATE_HZ = SAMPLE_RATE_HZ / HOP_SAMPLES
