"""DAVIS 2017: objects followed through videos by the similarity of patches."""
