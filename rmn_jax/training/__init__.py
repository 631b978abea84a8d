"""Training: the four phases, the step, the loop, the state and its checkpoints."""
