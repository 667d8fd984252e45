"""One training run: the loop, what it is planned from, and what it writes, shows and draws."""
