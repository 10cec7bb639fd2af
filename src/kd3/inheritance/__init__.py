"""A student that starts from its teacher's weights: which part from where, and the copying."""
