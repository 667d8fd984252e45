"""Features of images in a file, their nearest neighbors, and maps of them."""
