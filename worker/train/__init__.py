"""The trainer: a child process that computes, and knows neither database nor web."""
