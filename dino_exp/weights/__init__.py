"""Weights from elsewhere: where they are, what a file holds, and how they come into our networks."""
