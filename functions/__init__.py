"""All that AWS Lambda runs."""
