"""Feature extractors: uint8 images -> features, and class logits where the network has them."""
