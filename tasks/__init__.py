"""Where Prefect, data and engine meet: the tasks of the flows and what they share."""
