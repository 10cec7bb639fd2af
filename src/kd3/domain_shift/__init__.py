"""Distance of a pool from the teacher's training data: measured with the teacher only, or also with some original
images.

The package is not called `shift`, since `kd3.shift` is the function.
"""
