"""Looking at images that nobody has seen: what they are, and a recipe to begin with."""
