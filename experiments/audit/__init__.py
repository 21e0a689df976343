"""The auditor's command: attacks recorded runs and writes the report."""
