"""Which images of the pool to learn from: tensors in, a Selection out."""
