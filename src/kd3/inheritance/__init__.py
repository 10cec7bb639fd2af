"""Inheritance of a teacher's weights by its student: planning and copying."""
