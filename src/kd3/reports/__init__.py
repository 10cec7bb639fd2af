"""Pages and pictures for people, about runs and about selections."""
