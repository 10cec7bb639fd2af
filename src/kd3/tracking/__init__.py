"""Where else a run's history goes while it is written: TensorBoard, Weights & Biases, MLflow."""
