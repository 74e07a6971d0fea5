"""Make images with a trained model: draw, translate, write files."""
