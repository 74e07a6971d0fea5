"""A page in the browser for trying out a trained model, served on this machine only."""
