"""The wire formats of the stand-in, a file each."""
