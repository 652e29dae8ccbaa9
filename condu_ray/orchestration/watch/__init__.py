"""What a run shows while it works: metrics, progress, MLflow."""
