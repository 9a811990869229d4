"""Operations: what a service loses when it is reloaded, upgraded, killed or broken, under a load that does not wait.

`tests.operations.test_rows` holds a small form of each row to what must hold; ``python -m tests.operations`` takes the
figures of the full form, and those of gunicorn and uvicorn beside them.
"""
