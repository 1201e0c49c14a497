"""What leaves a training: its MLflow run, sample audio, model card and release."""
