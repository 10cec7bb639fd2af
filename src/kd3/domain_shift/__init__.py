"""Distance of a pool from the teacher's training data: from the teacher only, or with some original images.

The package is not called `shift`, since `kd3.shift` is the function.
"""
