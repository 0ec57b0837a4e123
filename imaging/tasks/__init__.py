"""LightningModules, one a task, thin over plain networks: loss, schedule and validation score, nothing else."""
