"""What a user runs: each file one workflow, wiring only."""
