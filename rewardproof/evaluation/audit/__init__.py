"""What would a policy exploit in a reward model? Perturbations with a known direction, and verdicts by their intervals."""
