"""What every process shares: settings, errors, database, queue, store, logs.

Imports nothing else of ours.
"""
