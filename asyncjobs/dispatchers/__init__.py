"""Ways to bring waiting jobs to what runs them; each in a module of its own."""
