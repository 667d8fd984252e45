"""Training in several processes: their communication, the batch norm, signals, and parts of a batch."""
