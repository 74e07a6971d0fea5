"""Feature extractors: from uint8 images to features, and to class logits if the network has them."""
