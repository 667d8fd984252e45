"""What the features are worth: k-NN and attention while training, and the evaluations of `evaluate.py`."""
