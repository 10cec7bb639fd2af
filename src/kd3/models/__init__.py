"""Teachers and students: how networks are named, built, loaded and looked into."""
