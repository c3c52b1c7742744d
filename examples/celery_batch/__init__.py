"""A file of questions spread over Celery's workers, on one machine or many."""
