"""A student that starts from its teacher's weights: the plan and the copying."""
