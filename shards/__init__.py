"""Data from many sources as plain tar shards, streamed in one exact order on any number of workers."""
