"""How good images are: distances between sets of them, similarity of pairs, and the features to measure both in."""
