"""What a store author tests with: the conformance suite and a manual clock."""
