"""Additional outputs for a run's history while it is written: TensorBoard, Weights & Biases, MLflow."""
