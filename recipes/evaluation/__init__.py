"""Cross-validation: held-out predictions, their scores, the rule for stray components, and the report."""
