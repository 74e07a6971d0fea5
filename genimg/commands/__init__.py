"""What the entry points do once their config is composed, one command a file."""
