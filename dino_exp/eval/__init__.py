"""What the features are worth: weighted k-NN, and where the class token looks."""
