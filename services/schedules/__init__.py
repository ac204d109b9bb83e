"""Schedules: what is started when, and what came of each firing."""
