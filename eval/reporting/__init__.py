"""The sections of the report: reading the folders, and the templates that draw them. Without torch."""
