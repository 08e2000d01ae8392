"""Programs that are sent into the container: they stand alone, and are not imported from here."""
