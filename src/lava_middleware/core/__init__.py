"""The rules: pure functions and frozen data. No clock, randomness, sockets, files or database in here."""
