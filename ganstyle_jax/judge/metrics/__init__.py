"""How good generated and stylised images are: distances of features, similarity of pairs, style transfer's own."""
