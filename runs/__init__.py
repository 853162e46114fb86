"""A training: its arguments, its steps, its folder, and what TensorBoard shows of it."""
