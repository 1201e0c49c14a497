"""The stored format of latent datasets: schema, splits, Parquet files, and which checkpoints were trained on them."""
