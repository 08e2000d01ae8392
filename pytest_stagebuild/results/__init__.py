"""What passes between a run and the tests inside the container."""
