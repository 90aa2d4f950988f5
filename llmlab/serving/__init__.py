"""Requests that come at their own times and decode together."""
