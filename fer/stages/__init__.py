"""What the stages of the pipeline do, one file a stage."""
