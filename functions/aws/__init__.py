"""AWS as the functions see it: the only code here that knows boto3 or powertools."""
