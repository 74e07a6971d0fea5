"""Compose configs from command lines, and build objects from configs."""

from genimg.config import schema as schema  # registers the schemas in the ConfigStore, which every composition needs
