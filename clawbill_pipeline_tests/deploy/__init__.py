"""What deploy/ holds, run and checked."""
