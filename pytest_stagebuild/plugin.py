"""The pytest hooks and fixtures."""
