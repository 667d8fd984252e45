"""Images ranked by the similarity of their features: retrieval and copy detection."""
