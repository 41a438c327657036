"""Built on the stages: the report of a run."""
