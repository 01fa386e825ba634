"""Where the journal is kept, and the accounts folded from it."""
