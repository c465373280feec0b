"""What the recipes' trainings share: the run folder, the loop around Lightning's, and modules with guarded steps."""
