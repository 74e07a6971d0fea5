"""Image-to-image tasks: derive (input, target) pairs from any dataset."""
