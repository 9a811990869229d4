"""Many processes that serve one server: a supervisor, which imports no code of users, and its workers."""
