"""What a trained network paints, and arrays made into pictures."""
