"""Generate and translate images with a trained model, and write files."""
