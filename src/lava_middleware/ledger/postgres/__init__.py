"""This package knows how the journal is kept in PostgreSQL: for many hosts, with batches, heartbeats and eras."""
