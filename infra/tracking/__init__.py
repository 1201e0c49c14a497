"""MLflow: runs, the durable queue before the server, and the model registry. The only imports of mlflow."""
