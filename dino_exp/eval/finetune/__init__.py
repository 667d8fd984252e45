"""Training the entire network with labels, from its pretrained weights."""
