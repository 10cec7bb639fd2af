"""The terms of the objectives: tensors in, scalar out."""
