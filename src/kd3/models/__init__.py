"""Teachers and students: naming, building, loading and examining networks."""
