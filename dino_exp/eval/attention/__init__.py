"""Where the class token looks: maps, their overlap with masks, and images and videos of both."""
