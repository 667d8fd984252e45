"""Features of images in files, their nearest neighbors, and maps of them."""
