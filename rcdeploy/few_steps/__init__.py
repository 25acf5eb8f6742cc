"""Few steps: a student learns to leap along the trajectory that its teacher follows in many small steps."""
