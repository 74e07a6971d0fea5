"""From the command line to a config, and from a config to objects."""

from genimg.config import schema as schema  # stores the schemas in the ConfigStore, which every composition needs
