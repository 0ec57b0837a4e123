"""The rows of the torture suite; see `torture`."""
