"""AWS as the functions see it: the only code here that knows its services or powertools."""
