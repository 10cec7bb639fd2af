"""Output of a selection for people: decisions and reasons by image, and pictures to check them."""
