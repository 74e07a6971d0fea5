"""The commands' work after their config is composed, one command per file."""
