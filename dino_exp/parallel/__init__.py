"""Processes that train together: what they exchange, and how a batch is shared among and within them."""
