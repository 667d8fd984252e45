"""What a training's log shows, and what to try against it."""
