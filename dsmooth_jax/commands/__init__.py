"""From flags to calls of the library."""
