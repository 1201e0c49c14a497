"""From a latent dataset to a checkpoint and its evaluation; the loop runs with and without Ray."""
