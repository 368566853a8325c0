"""From a due job to its recorded outcome."""
