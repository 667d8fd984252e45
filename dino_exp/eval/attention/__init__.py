"""Attention of the class token: maps, their overlap with masks, and figures and videos of both."""
