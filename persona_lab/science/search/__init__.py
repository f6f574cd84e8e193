"""A threshold that is searched for, round by round."""
