"""Choice of training images in the pool: tensors in, a Selection out."""
