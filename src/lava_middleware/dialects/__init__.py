"""One file per wire format: how it asks, how it answers, how it ends early, how it says no."""
