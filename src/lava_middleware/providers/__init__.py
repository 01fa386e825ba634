"""Who answers at which host, in which dialect, with which quirks."""
