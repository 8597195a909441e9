"""The parts of the report: what lies in the folders, and its HTML. No torch."""
